"""Checkpoints in the loop: when one is due, the save beside training, and what follows from its commit."""
