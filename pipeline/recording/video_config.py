"""What `preprocess.py video` asks for, and the source of episodes that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data.ranges import MAX_SEED, MAX_SIDE, MAX_WORKERS, MIN_SIDE, CheckedConfig, NonEmpty, Range
from data.shards.build_shards import available_cpus
from data.video.scenes import SCENE_THRESHOLD
from data.video.video_file import FrameSize
from data.video.video_source import VideoSource, open_videos


@dataclass(frozen=True)
class VideoConfig(CheckedConfig):
    paths: Annotated[tuple[Path, ...], NonEmpty()]
    """Videos (.mp4, .mkv, .webm, .gif), or folders of them or of numbered images, at any depth."""
    run: Path = Path("runs/video")
    """Run folder; shards are written to RUN/shards."""
    resolution: Annotated[int, Range(MIN_SIDE, MAX_SIDE)] = 64
    """Height of a frame, in pixels."""
    aspect: Annotated[tuple[float, float], Range(above=0, high=100)] = (1.0, 1.0)
    """Width to height of a frame, such as 16 9; images are cut to it around their center."""
    stretch: bool = False
    """Resize whole images to that instead of cutting them."""
    frameskip: Annotated[int, Range(1, 10**4)] = 1
    """Frames of the video from one frame to the next: 3 to 5 where a single one changes little."""
    scene_threshold: Annotated[float, Range(0, 255)] = SCENE_THRESHOLD
    """Mean change of a pixel between two frames, of 255, above which a new episode begins; 0 cuts
    nowhere."""
    seed: Annotated[int, Range(0, MAX_SEED)] = 0
    """Seed of the splits, which are by file."""
    num_workers: Annotated[int, Range(1, MAX_WORKERS)] = available_cpus()
    """Processes that decode; the shards do not depend on it."""
    live: Annotated[int, Range(0, 65535)] = 0
    """Port of a page that follows it at 127.0.0.1; 0 is no page."""
    restart: bool = False
    """Delete existing shards and start over."""

    def check(self) -> None:
        if not self.paths:
            raise ValueError("no PATH is given; name videos or folders: preprocess.py video PATH")
        super().check()
        if not MIN_SIDE <= self.frame_size.width <= MAX_SIDE:
            across, down = self.aspect
            raise ValueError(
                f"--aspect {across:g} {down:g} makes frames of {self.resolution} x "
                f"{self.frame_size.width} pixels; a side is from {MIN_SIDE} to {MAX_SIDE}"
            )

    @property
    def frame_size(self) -> FrameSize:
        width = round(self.resolution * self.aspect[0] / self.aspect[1])
        return FrameSize(self.resolution, width, self.stretch)


def video_source(config: VideoConfig) -> tuple[VideoSource, list[str]]:
    """Open the videos; return the source, and a line for each file that is left out."""
    return open_videos(config.paths, config.frame_size, config.frameskip, config.scene_threshold)
