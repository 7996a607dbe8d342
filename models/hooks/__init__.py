"""Hooks on the layers of a model: what they give is read, changed, trained on and drawn."""
