"""What a run shows of itself: events, metrics, TensorBoard curves, image grids and progress."""
