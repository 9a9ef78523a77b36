"""Synthetic data: procedural matting pairs and backgrounds."""
