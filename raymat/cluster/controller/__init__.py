"""Policies in Ray Train's controller."""
