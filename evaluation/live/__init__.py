"""A page that follows a training while it runs."""
