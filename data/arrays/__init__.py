"""Arrays of episodes, such as people bring, as a source of shards."""
