"""The dataset: which files it has, how they are read, and how it may grow."""
