"""raymat on Ray: the only part that imports it."""
