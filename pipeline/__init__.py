"""What every stage shares: the command line, checkpoints, the training run."""
