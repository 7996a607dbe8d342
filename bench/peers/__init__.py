"""Other projects' programs, set up for the same work as ours, each at its best settings."""
