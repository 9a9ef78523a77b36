"""Runs seen from their storage alone: where each stands, and what happens to it."""
