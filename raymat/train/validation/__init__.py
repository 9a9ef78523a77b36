"""Measures networks, and decides what follows from it."""
