"""A run as something smaller: checkpoints of half the bits, or a page that needs no server."""
