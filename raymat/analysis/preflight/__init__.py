"""What can be known before a run: its pictures, its storage, its weights."""
