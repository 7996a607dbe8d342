"""Minecraft, as OpenAI's contractors played it (VPT, arXiv:2206.11795): recordings to episodes."""
