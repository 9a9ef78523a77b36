"""Where the time of a run went: every second of every worker slot, by cause."""
