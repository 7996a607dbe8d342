"""The training loop that every stage shares."""
