"""What runs in workers and read tasks."""
