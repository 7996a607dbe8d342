"""Videos of an episode each, with a table of actions next to them.

Letters: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data.formats.image_folders import check_tables, table_columns
from data.formats.recording import Column, Recording, RecordingSet
from data.formats.step_table import find_table
from data.io.folders import has_suffix
from data.vpt.file_slice import FileSlice
from data.vpt.video import read_frames, read_video_info

SUFFIXES = (".mp4",)


def read_videos(files: Sequence[Path]) -> RecordingSet:
    """Read videos; the table of NAME.mp4 is NAME.csv, or actions.csv where it is the only one."""
    videos = [file for file in files if has_suffix(file, SUFFIXES)]
    logs = [video for video in videos if video.with_suffix(".jsonl").exists()]
    if logs:
        raise ValueError(
            f"{logs[0]} has a .jsonl next to it, as OpenAI's Minecraft recordings do; read those "
            f"with: python preprocess.py vpt --recordings {logs[0].parent}"
        )
    tables = {video: find_table(video.parent, video.stem, "actions", "action") for video in videos}
    for video, table in tables.items():
        alone = sum(other.parent == video.parent for other in videos) == 1
        if table is not None and table.stem != video.stem and not alone:
            raise ValueError(
                f"{table} lies next to several videos; call it {video.stem}{table.suffix} if it is "
                f"of {video.name}"
            )
    check_tables(tables)
    if not any(tables.values()):
        _refuse_other_tables(tables)
    recordings = [
        Recording(str(video), {"frames": frames_of(video)} | table_columns(tables[video]))
        for video in videos
    ]
    return RecordingSet(recordings, (*videos, *filter(None, tables.values())))


def _refuse_other_tables(videos: Iterable[Path]) -> None:
    """Refuse to take videos for ones without actions where a table of another name is there."""
    for folder in {video.parent for video in videos}:
        for other in sorted(folder.iterdir()):
            if has_suffix(other, (".csv", ".npy")):
                raise ValueError(
                    f"{other} may hold the actions of a video next to it; name it as the video "
                    f"(NAME{other.suffix} of NAME.mp4) if it does, or move it away"
                )


def every_frame(video: Path, every: int) -> tuple[int, Iterator[np.ndarray]]:
    """Return how many frames there are with `every` - 1 left out between two, and the frames,
    (H, W, 3) uint8, one at a time."""
    part = FileSlice(str(video))
    total = len(read_video_info(part).ticks)

    def read() -> Iterator[np.ndarray]:
        for index, frame in enumerate(read_frames(part, 0, total)):
            if index % every == 0:
                yield frame.to_ndarray(format="rgb24")

    return -(-total // every), read()


def frames_of(video: Path, skip: int = 0) -> Column:
    """Return the frames of a video after the first `skip`, decoded when they are read."""
    part = FileSlice(str(video))
    info = read_video_info(part)
    total = len(info.ticks)
    if skip >= total:
        raise ValueError(f"{video} holds {total} frames; more than {skip} are needed")

    def read(start: int, stop: int) -> np.ndarray:
        frames = np.empty((stop - start, info.height, info.width, 3), np.uint8)
        for index, frame in enumerate(read_frames(part, start + skip, stop + skip)):
            frames[index] = frame.to_ndarray(format="rgb24")
        return frames

    shape = (total - skip, info.height, info.width, 3)
    return Column(shape, np.dtype(np.uint8), read)
