"""Areas of `python -m bench`, one a file: each has `rows(options)`."""
