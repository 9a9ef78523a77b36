"""Works on finished runs: comparisons, averages, plateaus, scores. Prints nothing."""
