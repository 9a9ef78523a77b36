"""A cloud's notice becomes a Ray drain."""
