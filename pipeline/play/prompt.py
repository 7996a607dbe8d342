"""Start from image files instead of an episode: the first frame of a world that never was.

Letters: H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from data.formats.image_folders import read_image
from data.video.video_file import FrameSize
from models.world import World
from pipeline.play.goals import image_files
from pipeline.play.player import Start


class PromptStarts:
    """Starts from images, one after the other."""

    def __init__(self, names: Sequence[str], world: World) -> None:
        size = FrameSize(*world.image_size)
        self.paths = image_files(names)
        self.images = [read_prompt(path, size) for path in self.paths]
        self.next_actions = world.actions.empty(1, 1)[0].numpy()
        self._turn = -1

    def sample(self, steps: int = 0) -> Start:
        """Give the next image; it is followed by nothing."""
        self._turn = (self._turn + 1) % len(self.images)
        image = self.images[self._turn]
        return Start(
            episode=-1,
            frame=0,
            frames=image[None],
            actions=self.next_actions[:0],
            next_frames=np.empty((0, *image.shape), np.uint8),
            next_actions=self.next_actions,
            state=None,
            velocity=np.zeros(2),
        )

    def describe(self, start: Start) -> str:
        return f"the image {self.paths[self._turn]}"


def read_prompt(path: Path, size: FrameSize) -> np.ndarray:
    """Read an image file as a frame, (H, W, 3) uint8, cut around its center to the same aspect
    ratio; ValueError for what is no image."""
    return size.fit(av.VideoFrame.from_ndarray(read_image(path), format="rgb24"))
