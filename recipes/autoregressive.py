"""Codes of the next frame predicted one by one; put it behind a recipe of codes, pusht or minecraft."""

DYNAMICS = {"model.decoding": "autoregressive"}
