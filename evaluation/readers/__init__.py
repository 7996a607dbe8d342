"""Networks that read states and actions from frames, to measure with."""
