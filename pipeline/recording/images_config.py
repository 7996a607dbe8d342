"""What `preprocess.py images` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data.ranges import MAX_SEED, MAX_SIDE, MAX_WORKERS, MIN_SIDE, CheckedConfig, NonEmpty, Range
from data.shards.build_shards import available_cpus


@dataclass(frozen=True)
class ImagesConfig(CheckedConfig):
    paths: Annotated[tuple[Path, ...], NonEmpty()]
    """Folders of PNG, JPEG and WebP files, also nested ones, or the files themselves."""
    run: Path = Path("runs/images")
    """Run folder; shards are written to RUN/shards."""
    resolution: Annotated[int, Range(MIN_SIDE, MAX_SIDE)] = 64
    """Height and width of a frame, in pixels."""
    crops: Annotated[int, Range(1, 10**5)] = 1
    """Frames of an image: 1 is the largest square in its middle, more are random crops."""
    min_area: Annotated[float, Range(above=0, high=1)] = 0.2
    """Least share of the image's largest square that a random crop covers."""
    seed: Annotated[int, Range(0, MAX_SEED)] = 0
    """Seed of the crops and of the splits."""
    num_workers: Annotated[int, Range(1, MAX_WORKERS)] = available_cpus()
    """Processes; the shards do not depend on it."""
    live: Annotated[int, Range(0, 65535)] = 0
    """Port of a page that follows it at 127.0.0.1; 0 is no page."""
    restart: bool = False
    """Delete existing shards and start over."""

    def check(self) -> None:
        if not self.paths:
            raise ValueError("no PATH is given; name folders or files: preprocess.py images PATH")
        super().check()
