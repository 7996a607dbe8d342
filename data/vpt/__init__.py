"""Minecraft: episodes from OpenAI's contractor recordings (VPT, arXiv:2206.11795)."""
