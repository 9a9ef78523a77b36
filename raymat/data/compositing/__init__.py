"""What is done to the pictures of a batch on the training device."""
