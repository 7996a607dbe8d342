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
TICKS_PER_SECOND = 20  # of the recorder
GRID_TOLERANCE = 0.25  # of a tick, by which the times of frames may be off


@dataclass(frozen=True)
class VideoInfo:
    """The size, the rate and the times of a video."""

    height: int
    width: int
    rate: float  # frames per second, by the median distance of two frames
    ticks: np.ndarray
    """(T,) int64, rising from 0: the tick at which each frame is shown; one is missing where the
    recorder dropped a frame."""


def read_video_info(video: FileSlice) -> VideoInfo:
    """Read a video's header and times; ValueError names a file that cannot be opened, is empty, or
    holds fewer frames than its header says."""
    with _open_stream(video) as (container, stream):
        times, count = _display_times(container, stream)
        if not len(times):
            raise ValueError(f"{video} holds no frames; get the recording again")
        if count < stream.frames:
            raise ValueError(
                f"{video} ends after frame {count}, but its header says {stream.frames}; it is "
                f"truncated, get it again"
            )
        rate = float(stream.average_rate or 0)
        if len(times) > 1:
            rate = 1 / (float(np.median(np.diff(times))) * float(stream.time_base))
        seconds = times * float(stream.time_base)
        return VideoInfo(stream.height, stream.width, rate, _ticks(seconds))


def _display_times(container: Any, stream: Any) -> tuple[np.ndarray, int]:
    """Return the times of all frames that are shown, in order, (T,) int64 in the stream's unit, and
    the number of all frames that there are."""
    packets = [(p.pts, p.is_discard) for p in container.demux(stream) if p.pts is not None]
    times = [time for time, is_discarded in packets if not is_discarded]
    return np.unique(np.array(times, np.int64)), len(packets)


def _ticks(seconds: np.ndarray) -> np.ndarray:
    """Divide times by a recorder's tick, or else by their usual distance; frames are counted where
    they fit neither grid."""
    if len(seconds) > 1:
        distances = np.diff(seconds)
        usual = distances[distances < 1.5 * np.median(distances)].mean()
        for tick in (1 / TICKS_PER_SECOND, usual):
            steps = (seconds - seconds[0]) / tick
            ticks = steps.round().astype(np.int64)
            if abs(steps - ticks).max() < GRID_TOLERANCE and (np.diff(ticks) > 0).all():
                return ticks
    return np.arange(len(seconds))


def read_frames(video: FileSlice, first: int, last: int) -> Iterator[VideoFrame]:
    """Decode frames [first, last), in display order.

    ValueError where the video ends before `last`, or the decoder finds a frame damaged.
    """
    with _open_stream(video) as (container, stream):
        # a decoder may leave out damaged frames: their times, not their count, give their index
        times, _ = _display_times(container, stream)
        index_of_time = {time: index for index, time in enumerate(times.tolist())}
        if len(times):  # to the nearest keyframe before
            container.seek(int(times[min(first, len(times) - 1)]), stream=stream)
        number, begun = 0, False
        try:
            for frame in container.decode(stream):
                index = index_of_time.get(frame.pts, number)  # type: ignore[arg-type]
                begun = begun or bool(frame.key_frame) or index >= first
                if index >= last:
                    break
                wanted = max(first, number)
                # until the next keyframe, later frames are made from a damaged one
                if begun and (frame.is_corrupt or index > wanted):
                    raise ValueError(
                        f"{video} is damaged at frame {min(index, wanted)}, which cannot be "
                        f"decoded whole; get it again"
                    )
                number = index + 1
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
            if stream.codec_context is None or not stream.codec_context.height:
                raise ValueError(
                    f"{video} is in a form that cannot be decoded here, or is damaged; get the "
                    f"original"
                )
            stream.thread_type = "NONE"  # videos are decoded in parallel, one per core
            yield container, stream
    except FFmpegError as problem:
        raise ValueError(
            f"{video} cannot be opened as a video ({problem.strerror}); it is truncated or "
            f"damaged, get it again"
        ) from None
    except FileNotFoundError:
        raise ValueError(f"{video} does not exist") from None
