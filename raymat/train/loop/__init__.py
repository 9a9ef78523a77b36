"""One attempt, from restore to the last commit."""
