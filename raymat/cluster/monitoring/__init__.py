"""What others are told of a run while it trains: webhooks, and metrics for Prometheus."""
