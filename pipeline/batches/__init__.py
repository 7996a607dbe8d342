"""From shards to batches: clips, latents, demonstrations, workers."""
