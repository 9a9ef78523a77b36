"""Datasets: listing their files, reading them, and adding to them."""
