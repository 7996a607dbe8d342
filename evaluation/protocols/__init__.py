"""Protocols of the real simulator, and the policies that play them."""
