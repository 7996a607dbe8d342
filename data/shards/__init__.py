"""Shards: what one is, how they are built, and a folder of them as a dataset."""
