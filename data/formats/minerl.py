"""MineRL's folders of 2019 (arXiv:1907.13440): a video, and its steps in an .npz.

T + 1 states of T actions; the frames of the states are the last T + 1 of the video.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.formats.numpy_files import read_npz
from data.formats.recording import Column, Recording, RecordingSet, array_column, reading
from data.formats.video_files import frames_of
from data.vpt.file_slice import FileSlice
from data.vpt.video import read_video_info

VIDEO, STEPS, FACTS = "recording.mp4", "rendered.npz", "metadata.json"
ACTION = "action$"


def is_minerl(files: Sequence[Path]) -> bool:
    """Say whether there is a folder of MineRL 2019: recording.mp4 with rendered.npz."""
    return any(f.name == STEPS and (f.parent / VIDEO).exists() for f in files)


def read_minerl(files: Sequence[Path]) -> RecordingSet:
    """Read MineRL's folders.

    Actions are the camera (pitch and yaw, in degrees) and the keys, in one vector. What a player
    crafts, places or equips is text, and is left aside.
    """
    folders = [file.parent for file in files if file.name == STEPS]
    recordings: list[Recording] = []
    read: list[Path] = []
    expected: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    for folder in folders:
        steps = read_npz([folder / STEPS], "").recordings[0].columns
        keys = sorted(name for name in steps if name.startswith(ACTION))
        names = tuple(n for n in keys if steps[n].dtype.kind in "biuf" and len(steps[n].shape) < 3)
        left = tuple(name.removeprefix(ACTION) for name in keys if name not in names)
        if f"{ACTION}camera" not in names or "reward" not in steps:
            raise ValueError(
                f"{folder / STEPS} has no {ACTION}camera and reward, as MineRL's of 2019 have; get "
                f"it again"
            )
        expected = expected or names
        if names != expected:
            raise ValueError(
                f"{folder / STEPS} has other actions than {folders[0]}; import it alone"
            )
        actions = _one_vector([steps[name] for name in names], str(folder / STEPS))
        columns = {
            "frames": _frames(folder, len(actions) + 1),
            "actions": array_column(actions, str(folder / STEPS)),
            "rewards": steps["reward"],
        }
        recordings.append(Recording(str(folder), columns))
        read += [file for n in (STEPS, VIDEO, FACTS) if (file := folder / n).exists()]
    numbers = ", ".join(name.removeprefix(ACTION) for name in expected)
    remarks = [f"MineRL: the numbers of an action are, in this order, {numbers}"]
    if left:
        remarks.append(f"MineRL: left aside, since they are no numbers: {', '.join(left)}")
    return RecordingSet(recordings, tuple(read), remarks=tuple(remarks))


def _one_vector(columns: list[Column], where: str) -> np.ndarray:
    """Join the parts of an action: (T, A) float32."""
    count = len(columns[0])
    if any(len(column) != count for column in columns):
        raise ValueError(f"{where} has actions of {sorted({len(c) for c in columns})} steps")
    parts = [column.read(0, count).reshape(count, -1) for column in columns]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _frames(folder: Path, count: int) -> Column:
    """Return the last `count` frames: before the first step, the game starts."""
    video, facts = folder / VIDEO, folder / FACTS
    if not video.exists():
        raise ValueError(f"{folder} has {STEPS}, but no {VIDEO}; get it again")
    there = total = len(read_video_info(FileSlice(str(video))).ticks)
    if facts.exists():
        with reading(str(facts)):
            total = int(json.loads(facts.read_bytes()).get("true_video_frame_count", there))
    if not count <= total <= there:
        raise ValueError(
            f"{video} holds {there} frames, but {max(count, total)} are needed; get it again"
        )
    frames = frames_of(video, total - count)
    return Column((count, *frames.shape[1:]), frames.dtype, frames.read)
