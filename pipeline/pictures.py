"""Moved to pipeline/video.py; to be deleted once nothing imports it."""

from pipeline.video import make_grid

__all__ = ["make_grid"]
