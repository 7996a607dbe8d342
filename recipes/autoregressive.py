"""Codes of the next frame predicted one by one; for a recipe of codes named before it."""

DYNAMICS = {"model.decoding": "autoregressive"}
