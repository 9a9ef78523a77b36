"""One driver at a time."""
