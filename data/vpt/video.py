"""Read frames of a video by their index, at a requested size.

Letters: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame

from data.vpt.file_slice import FileSlice

INTERPOLATION = "AREA"  # averages; bilinear reads one pixel in ten and aliases


@dataclass(frozen=True)
class VideoInfo:
    """The header of a video."""

    frames: int
    height: int
    width: int
    rate: float  # frames per second


def read_video_info(video: FileSlice) -> VideoInfo:
    """Read a video's header; ValueError names a file that cannot be opened, or is empty."""
    with _open_stream(video) as (_, stream):
        rate = float(stream.average_rate or 0)
        frames = int(stream.frames) or round(float(stream.duration or 0) * stream.time_base * rate)
        info = VideoInfo(frames, stream.height, stream.width, rate)
    if info.frames < 1:
        raise ValueError(f"{video} holds no frames; get the recording again")
    return info


def read_frames(video: FileSlice, first: int, last: int) -> Iterator[VideoFrame]:
    """Decode frames [first, last), in display order.

    ValueError where the video ends before `last`.
    """
    with _open_stream(video) as (container, stream):
        number = 0
        index_of_pts: dict[int, int] = {}
        if first:
            # seek to the nearest keyframe before; its timestamp gives its index
            packets = container.demux(stream)
            times = sorted(packet.pts for packet in packets if packet.pts is not None)
            index_of_pts = {time: index for index, time in enumerate(times)}
            container.seek(times[min(first, len(times) - 1)], stream=stream)
        try:
            for frame in container.decode(stream):
                index = index_of_pts.get(frame.pts, number) if index_of_pts else number  # type: ignore[arg-type]
                number = index + 1
                if index >= last:
                    return
                if index >= first:
                    yield frame
        except FFmpegError as problem:
            raise ValueError(
                f"{video} cannot be decoded after frame {number} ({problem.strerror}); it is "
                f"truncated or damaged, get it again"
            ) from None
    if number < last:
        raise ValueError(
            f"{video} ends after frame {number}, but {last} were expected; it is truncated, get "
            f"it again"
        )


def shrink(frame: VideoFrame, height: int, width: int) -> np.ndarray:
    """Resize to (H, W, 3) uint8, RGB."""
    return frame.reformat(width, height, format="rgb24", interpolation=INTERPOLATION).to_ndarray()


@contextmanager
def _open_stream(video: FileSlice) -> Iterator[tuple[Any, Any]]:
    try:
        with video.open() as file, av.open(file) as container:
            if not container.streams.video:
                raise ValueError(f"{video} holds no video; get the recording again")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"  # videos are decoded in parallel, one per core
            yield container, stream
    except FFmpegError as problem:
        raise ValueError(
            f"{video} cannot be opened as a video ({problem.strerror}); it is truncated or "
            f"damaged, get it again"
        ) from None
    except FileNotFoundError:
        raise ValueError(f"{video} does not exist") from None
