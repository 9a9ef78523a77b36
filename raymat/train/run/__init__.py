"""A run's identity: run.json, resume rules, extension."""
