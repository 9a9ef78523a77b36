"""What a run is told: values, sections, flags, and what a resumed run may not change."""
