"""Latents and actions to the next latents."""
