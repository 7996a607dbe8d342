"""Networks that estimate states and actions from frames, to measure rollouts with."""
