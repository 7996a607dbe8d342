"""Import of arrays: an HDF5 file, .npy files, or a folder of .npz; actions are optional.

Letters: N episodes, T steps, H W pixels, A numbers of an action.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data.arrays.array_actions import FROM_THE_DATA, ActionOptions, ActionReader, read_actions
from data.arrays.array_frames import (
    PROBED,
    Layout,
    describe_frames,
    infer_layout,
    resize_frames,
    to_uint8,
)
from data.arrays.array_states import name_states
from data.arrays.finite_steps import check_finite
from data.formats.raw_episodes import OPTIONAL_KEYS, RawEpisodes, ReadOptions
from data.formats.read_raw import read_raw
from data.formats.step_alignment import Alignment
from data.shards.episodes import Episode
from data.shards.identity import digest_of
from data.shards.shard_header import STEP_DTYPES

BYTES_PER_SHARD = 64 * 2**20


@dataclass(frozen=True)
class ArraysInfo:
    """What is known of the data before all frames are read."""

    raw: RawEpisodes
    image_size: tuple[int, int]
    layout: Layout
    actions: ActionReader
    optional: tuple[str, ...]
    state_names: tuple[str, ...]  # of the numbers of a state
    remarks: tuple[str, ...]  # lines for the user: what was taken for what, and left aside


@dataclass(frozen=True)
class ArraySource:
    """A source of imported episodes; each episode is a source of its own.

    Frames are uint8, or numbers from 0 to 255 after multiplication by `scale`. Actions are codes or
    numbers, as `actions` says or as they look (data/arrays/array_actions.py). Without an array of
    actions, episodes have none. States have `state_names`, or are numbered.
    """

    path: str
    layout: Layout = "auto"
    scale: float = 1.0
    frames_key: str = ""
    rename: tuple[str, ...] = ()
    alignment: Alignment = "next"
    actions: ActionOptions = FROM_THE_DATA
    state_names: tuple[str, ...] = ()
    resolution: int = 0
    """Height and width that frames are averaged down to; 0 leaves them as they are."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Of a frame in the shards: height and width."""
        side = self.resolution
        return (side, side) if side else self._info().image_size

    @property
    def remarks(self) -> tuple[str, ...]:
        """Lines for the user: what was taken for what, and what was left aside."""
        return self._info().remarks

    @property
    def source_lengths(self) -> tuple[int, ...]:
        """Frames of each episode."""
        return self._info().raw.lengths

    @property
    def num_sources(self) -> int:
        return len(self._info().raw.lengths)

    @property
    def num_shards(self) -> int:
        return len(self._episodes_by_shard())

    def description(self) -> dict[str, Any]:
        info = self._info()
        return {
            "source": "arrays",
            "image_size": list(self.image_size),
            "actions": info.actions.spec.as_dict(),
            "state_names": list(info.state_names),
            "settings": self._settings(),
            "recordings": {
                "name": Path(self.path).name,
                "episodes": len(info.raw.lengths),
                "frames": sum(info.raw.lengths),
                **digest_of(Path(self.path), info.raw.files),
            },
        }

    def _settings(self) -> dict[str, Any]:
        """Return what was set: older shards know the first three, and others by their default."""
        settings: dict[str, Any] = {
            "path": Path(self.path).name,
            "layout": self.layout,
            "scale": self.scale,
        }
        for name in ("frames_key", "rename", "alignment", "resolution"):
            if getattr(self, name) != getattr(ArraySource, name):
                settings[name] = getattr(self, name)
        if self.actions.kind != "auto":  # the rest is in the action space
            settings["actions"] = self.actions.kind
        return settings

    def make_shard(self, index: int) -> list[Episode]:
        return [self.episode(number) for number in self._episodes_by_shard()[index]]

    def episode(self, number: int) -> Episode:
        info = self._info()
        raw = info.raw
        where = raw.location(number)
        frames = raw.read(number, "frames")
        channel_axis = 1 if info.layout == "CHW" else 3
        if frames.ndim != 4 or frames.shape[channel_axis] != 3:
            raise ValueError(
                f"{where} has frames of {frames.shape[1:]}, but the first episode's are "
                f"{info.layout} with 3 colors; use one layout for all"
            )
        frames = to_uint8(frames, self.scale, where)
        if info.layout == "CHW":
            frames = frames.transpose(0, 2, 3, 1)
        if self.resolution:
            frames = resize_frames(frames, self.resolution)
        elif frames.shape[1:3] != info.image_size:
            raise ValueError(
                f"{where} has frames of {frames.shape[1]} x {frames.shape[2]} pixels, and the "
                f"first episode of {info.image_size[0]} x {info.image_size[1]}; give "
                f"--resolution for one size"
            )
        actions = _read_actions(info, number, len(frames))
        extra: dict[str, Any] = {
            name: self._optional_array(info, number, name, len(frames)) for name in info.optional
        }
        return Episode(
            frames=np.ascontiguousarray(frames),
            actions=actions,
            source=number,
            **extra,
        )

    def _optional_array(self, info: ArraysInfo, number: int, name: str, length: int) -> np.ndarray:
        where, values = info.raw.location(number), info.raw.read(number, name)
        shape = (length, len(info.state_names)) if name == "states" else (length,)
        if values.shape != shape or values.dtype.kind not in "biuf":
            raise ValueError(
                f"{where} has {name} of {values.dtype} {values.shape}, but {length} frames need "
                f"numbers of {shape}; correct or remove that array"
            )
        return values.astype(STEP_DTYPES[name])

    def _info(self) -> ArraysInfo:
        options = ReadOptions(self.frames_key, self.rename, self.alignment)
        return _read_info(
            Path(self.path), self.layout, self.scale, options, self.actions, self.state_names
        )

    def _episodes_by_shard(self) -> list[list[int]]:
        """Group the episodes into shards of at most BYTES_PER_SHARD, or of one episode."""
        info, (height, width) = self._info(), self.image_size
        groups: list[list[int]] = [[]]
        size = 0
        for number, length in enumerate(info.raw.lengths):
            if groups[-1] and size + length * height * width * 3 > BYTES_PER_SHARD:
                groups.append([])
                size = 0
            groups[-1].append(number)
            size += length * height * width * 3
        return groups


def _read_actions(info: ArraysInfo, number: int, length: int) -> np.ndarray | None:
    if info.actions.form == "none":
        return None
    actions = info.raw.read(number, "actions")
    if len(actions) != length:
        raise ValueError(
            f"{info.raw.location(number)} has {length} frames but {len(actions)} actions; one "
            f"action per frame is needed (the last one leads nowhere)"
        )
    return info.actions.convert(actions)


@lru_cache(maxsize=2)
def _read_info(
    path: Path,
    layout: Layout,
    scale: float,
    options: ReadOptions,
    actions: ActionOptions,
    state_names: tuple[str, ...],
) -> ArraysInfo:
    raw = read_raw(path, options)
    first = raw.read(0, "frames")
    layout = infer_layout(first.shape, layout, raw.location(0))
    height, width = first.shape[2:4] if layout == "CHW" else first.shape[1:3]
    count = len(raw.lengths)
    numbers = np.unique(np.linspace(0, count - 1, min(PROBED, count)).astype(int)).tolist()
    probed = ((raw.read(number, "frames"), raw.location(number)) for number in numbers)
    frames_line = describe_frames(probed, scale)
    optional = tuple(name for name in OPTIONAL_KEYS if name in raw.keys)
    check_finite(raw, [name for name in ("actions", *OPTIONAL_KEYS) if name in raw.keys])
    names, state_lines = name_states(raw, state_names)
    reader, lines = read_actions(raw, actions)
    remarks = (*raw.remarks, *([frames_line] if frames_line else []), *lines, *state_lines)
    size = int(height), int(width)
    return ArraysInfo(raw, size, layout, reader, optional, names, remarks)
