"""Commands that look at runs from anywhere that can read their storage."""
