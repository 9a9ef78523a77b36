"""What workers share: ranks, collectives, gradients, batch-norm statistics."""
