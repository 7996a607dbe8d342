"""Recordings become shards, shards become clips."""
