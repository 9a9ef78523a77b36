"""Merges the many small objects of a long run's records into few large ones."""
