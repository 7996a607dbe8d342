"""Frames of a video, by their number, at the size that is asked for.

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

from data.vpt.file_slice import Place

HOW = "AREA"  # averages: a bilinear look at one pixel in ten shimmers with every step


@dataclass(frozen=True)
class Facts:
    """What a video's header says."""

    frames: int
    height: int
    width: int
    rate: float  # frames a second


def read_facts(place: Place) -> Facts:
    """Read a video's header; ValueError names what cannot be opened, or holds nothing."""
    with _opened(place) as (_, stream):
        rate = float(stream.average_rate or 0)
        frames = int(stream.frames) or round(float(stream.duration or 0) * stream.time_base * rate)
        facts = Facts(frames, stream.height, stream.width, rate)
    if facts.frames < 1:
        raise ValueError(f"{place} holds no frames; get the recording again")
    return facts


def read_frames(place: Place, first: int, last: int) -> Iterator[VideoFrame]:
    """Decode frames [first, last), numbered as they are shown.

    ValueError where the video breaks off before `last`.
    """
    with _opened(place) as (container, stream):
        number = 0
        rank: dict[int, int] = {}
        if first:
            # from the nearest frame before that needs no other; which one it is, its time tells
            packets = container.demux(stream)
            times = sorted(packet.pts for packet in packets if packet.pts is not None)
            rank = {time: at for at, time in enumerate(times)}
            container.seek(times[min(first, len(times) - 1)], stream=stream)
        try:
            for frame in container.decode(stream):
                at = rank.get(frame.pts, number) if rank else number  # type: ignore[arg-type]
                number = at + 1
                if at >= last:
                    return
                if at >= first:
                    yield frame
        except FFmpegError as problem:
            raise ValueError(
                f"{place} cannot be decoded after frame {number} ({problem.strerror}); it was cut "
                f"or damaged, get it again"
            ) from None
    if number < last:
        raise ValueError(
            f"{place} breaks off after frame {number}, and {last} were expected; it was cut, get "
            f"it again"
        )


def shrink(frame: VideoFrame, height: int, width: int) -> np.ndarray:
    """Give (H, W, 3) uint8, RGB."""
    return frame.reformat(width, height, format="rgb24", interpolation=HOW).to_ndarray()


@contextmanager
def _opened(place: Place) -> Iterator[tuple[Any, Any]]:
    try:
        with place.open() as file, av.open(file) as container:
            if not container.streams.video:
                raise ValueError(f"{place} holds no video; get the recording again")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"  # clips are decoded side by side, one on each core
            yield container, stream
    except FFmpegError as problem:
        raise ValueError(
            f"{place} cannot be opened as a video ({problem.strerror}); it was cut or damaged, get "
            f"it again"
        ) from None
    except FileNotFoundError:
        raise ValueError(f"{place} is not there") from None
