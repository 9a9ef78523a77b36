"""Loggers that hand a run's rows to services: W&B and MLflow."""
