"""A video file, or a folder of numbered images: how long it is, and its frames at one size.

Letters: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from data.formats.image_folders import read_image
from data.vpt.file_slice import FileSlice
from data.vpt.video import read_frames, read_video_info, shrink


@dataclass(frozen=True)
class FrameSize:
    """How images become frames of one size."""

    height: int
    width: int
    stretch: bool = False
    """Keep the whole image, and not its aspect ratio; else its sides, or its top and bottom, are
    cut off alike."""

    def fit(self, frame: av.VideoFrame) -> np.ndarray:
        """Average over areas to (H, W, 3) uint8, RGB."""
        if self.stretch:
            return shrink(frame, self.height, self.width)
        scale = max(self.height / frame.height, self.width / frame.width)
        height = max(self.height, round(frame.height * scale))
        width = max(self.width, round(frame.width * scale))
        top, left = (height - self.height) // 2, (width - self.width) // 2
        whole = shrink(frame, height, width)
        return whole[top : top + self.height, left : left + self.width]


@dataclass(frozen=True)
class VideoFile:
    """Frames in a row without actions."""

    name: str
    """Its path below what was given, which notes and messages call it."""
    path: Path
    """The file, or the folder of the images."""
    images: tuple[Path, ...] = ()
    """The images in their order; empty for a video."""

    @property
    def files(self) -> tuple[Path, ...]:
        return self.images or (self.path,)

    def count_frames(self) -> int:
        """Count the frames; ValueError names a file that cannot be opened, or is cut short."""
        empty = next((file for file in self.files if file.stat().st_size == 0), None)
        if empty is not None:
            raise ValueError(f"{empty} has 0 bytes")
        if self.images:
            read_image(self.images[0])
            return len(self.images)
        return len(read_video_info(FileSlice(str(self.path))).ticks)

    def read(self, first: int, count: int, frameskip: int, size: FrameSize) -> np.ndarray:
        """Read `count` frames, every `frameskip`-th from `first` on: (T, H, W, 3) uint8.

        ValueError names the first frame that is damaged.
        """
        frames = np.empty((count, size.height, size.width, 3), np.uint8)
        last = first + (count - 1) * frameskip + 1
        for index, frame in enumerate(self._frames(first, last)):
            if index % frameskip == 0:
                frames[index // frameskip] = size.fit(frame)
        return frames

    def _frames(self, first: int, last: int) -> Iterator[av.VideoFrame]:
        if not self.images:
            yield from read_frames(FileSlice(str(self.path)), first, last)
            return
        for image in self.images[first:last]:
            yield av.VideoFrame.from_ndarray(read_image(image), format="rgb24")
