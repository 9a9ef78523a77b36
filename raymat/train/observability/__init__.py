"""Events, curves, pictures and progress of a run."""
