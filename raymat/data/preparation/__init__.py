"""Smaller copies of datasets, made once: `raymat prepare`."""
