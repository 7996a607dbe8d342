"""LeRobot's folders: tables of steps in parquet, cameras as videos or as images in the tables.

Format 2 has a file for each episode, format 3 puts several into one.  Parquet needs pyarrow.
Letters: T steps, H W pixels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.formats.decode_image import decode_image
from data.formats.recording import Column, Recording, RecordingSet, array_column, reading
from data.formats.video_files import frames_of

INFO = "meta/info.json"
NAMES = {"action": "actions", "next.reward": "rewards", "observation.state": "states"}
NUMBERS = ("float32", "float64", "int32", "int64", "int16", "int8", "uint8", "bool")


def is_lerobot(path: Path) -> bool:
    return (path / INFO).is_file()


def read_lerobot(path: Path) -> RecordingSet:
    """Read a dataset; ValueError where pyarrow is missing, or what it describes is not there.

    Actions are those taken at a frame, and rewards follow from them.  `next.done` may be a time
    limit, so it is left aside.
    """
    with reading(str(path / INFO)):
        info = json.loads((path / INFO).read_bytes())
        features, fps = dict(info["features"]), float(info["fps"])
        count, is_v3 = int(info["total_episodes"]), str(info["codebase_version"]).startswith("v3")
    episodes = _episodes_v3(path, count) if is_v3 else _episodes_v2(info, count)
    tables: dict[Path, Mapping[str, np.ndarray]] = {}
    recordings, files = [], {path / INFO: None}
    for episode in episodes:
        where = f"episode {episode.number} of {path}"
        file = _inside(path, episode, info, "data_path", "data")
        if file not in tables:
            tables = {file: _read_table(file)}  # one at a time: consecutive episodes share it
        table = tables[file]
        rows = np.flatnonzero(table["episode_index"] == episode.number)
        if not len(rows) or rows[-1] - rows[0] + 1 != len(rows):
            raise ValueError(f"{file} does not hold {where} in a row; get it again")
        files[file] = None
        columns: dict[str, Column] = {}
        for name, feature in features.items():
            if feature["dtype"] == "video":
                video = _inside(path, episode, info, "video_path", name)
                files[video] = None
                columns[name] = _video(video, episode.first_frame(name, fps), len(rows), where)
            elif feature["dtype"] == "image" and name in table:
                columns[name] = _images(table[name][rows], f"{name} of {where}")
            elif feature["dtype"] in NUMBERS and name in NAMES and name in table:
                with reading(f"{name} of {where}"):
                    values = np.stack([np.asarray(value) for value in table[name][rows]])
                columns[name] = array_column(_flat(values, name), where)
        recordings.append(Recording(where, columns))
    return RecordingSet(recordings, tuple(files), NAMES, by_transition=True)


@dataclass(frozen=True)
class _Episode:
    """Where the files of an episode are."""

    number: int
    chunks_size: int
    places: Mapping[str, Any] | None = None
    """The row of format 3's table of episodes; None in format 2."""

    def fill(self, pattern: str, key: str) -> str:
        """Fill in the name of a file: of the steps (`data`), or of a camera."""
        video_key = "" if key == "data" else key
        if self.places is None:
            chunk = self.number // self.chunks_size
            return pattern.format(
                episode_chunk=chunk, episode_index=self.number, video_key=video_key
            )
        prefix = key if key == "data" else f"videos/{key}"
        chunk, file = (int(self.places[f"{prefix}/{name}_index"]) for name in ("chunk", "file"))
        return pattern.format(chunk_index=chunk, file_index=file, video_key=video_key)

    def first_frame(self, key: str, fps: float) -> int:
        """Return where the episode begins in the video of a camera."""
        if self.places is None:
            return 0
        return round(float(self.places[f"videos/{key}/from_timestamp"]) * fps)


def _inside(path: Path, episode: _Episode, info: Mapping[str, Any], pattern: str, key: str) -> Path:
    """Return a file of the dataset; ValueError for one that lies outside of its folder."""
    with reading(str(path / INFO)):
        file = path / episode.fill(str(info[pattern]), key)
    # without following links, of which the Hub's cache consists
    if not Path(os.path.normpath(file)).is_relative_to(os.path.normpath(path)):
        raise ValueError(f"{path / INFO} names {file}, outside of its folder; get it again")
    return file


def _episodes_v2(info: Mapping[str, Any], count: int) -> list[_Episode]:
    size = int(info.get("chunks_size", 1000))
    return [_Episode(number, size) for number in range(count)]


def _episodes_v3(path: Path, count: int) -> list[_Episode]:
    found = []
    for file in sorted((path / "meta" / "episodes").rglob("*.parquet")):
        table = _read_table(file)
        for row in range(len(table["episode_index"])):
            places = {name: values[row] for name, values in table.items()}
            found.append(_Episode(int(places["episode_index"]), 1, places))
    if len(found) != count:
        raise ValueError(
            f"{path / 'meta' / 'episodes'} lists {len(found)} episodes, and {INFO} says {count}; "
            f"get the dataset again"
        )
    return sorted(found, key=lambda episode: episode.number)


def _read_table(file: Path) -> Mapping[str, np.ndarray]:
    """Read the columns of a parquet file; those of lists are arrays of objects."""
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError(
            f"{file} is parquet, as LeRobot's datasets have it, and pyarrow is not installed: pip "
            f"install pyarrow"
        ) from None
    if not file.exists():
        raise ValueError(f"{file} is not there; get the dataset again")
    with reading(str(file)):
        table = parquet.read_table(file)
        return {
            name: np.array(column.to_pylist(), object)
            if str(column.type).startswith(("list", "fixed_size_list", "struct"))
            else column.to_numpy()
            for name, column in zip(table.column_names, table.columns, strict=True)
        }


def _flat(values: np.ndarray, name: str) -> np.ndarray:
    """Give rewards (T,) where they are (T, 1)."""
    return values[:, 0] if NAMES[name] == "rewards" and values.ndim == 2 else values


def _video(video: Path, first: int, count: int, where: str) -> Column:
    if not video.exists():
        raise ValueError(f"{video}, the frames of {where}, is not there; get the dataset again")
    frames = frames_of(video, first)
    if len(frames) < count:
        raise ValueError(
            f"{video} holds {len(frames)} frames from frame {first} on, but {where} has {count} "
            f"steps; get it again"
        )
    return Column((count, *frames.shape[1:]), frames.dtype, frames.read)


def _images(stored: np.ndarray, where: str) -> Column:
    """Images that lie in the table, as PNG or JPEG."""

    def decode(image: Any) -> np.ndarray:
        content = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(content, bytes):
            raise ValueError(f"{where} has no image in its table; get the dataset again")
        return decode_image(content, where)

    def read(start: int, stop: int) -> np.ndarray:
        return np.stack([decode(image) for image in stored[start:stop]])

    return Column((len(stored), *decode(stored[0]).shape), np.dtype(np.uint8), read)
