"""Other people's programs, brought to run the same work as ours, each at its best settings."""
