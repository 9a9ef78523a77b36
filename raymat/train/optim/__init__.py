"""Losses, optimiser, learning rates, precision, averaged weights."""
