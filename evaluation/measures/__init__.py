"""Metrics of a world on held-out episodes."""
