"""Procedural pictures."""
