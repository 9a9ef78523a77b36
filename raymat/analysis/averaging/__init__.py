"""Averages of networks: weights, batch-norm statistics, and the greedy choice of what to average."""
