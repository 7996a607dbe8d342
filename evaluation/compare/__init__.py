"""Runs side by side, from their reports and logs."""
