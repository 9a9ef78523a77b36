"""What a run will take on machines that vanish, before they are paid for."""
