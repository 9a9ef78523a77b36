"""Storage at any URL: stores, backends, retries and faults, without torch."""
