"""From sources of episodes to shards, and from shards to clips."""
