"""What stage 1 and `check` look for in recordings."""
