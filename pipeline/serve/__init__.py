"""A run as an HTTP service (docs/tutorial/serve.md)."""
