"""Bytes at a URL: stores, backends, retries and faults. No torch."""
