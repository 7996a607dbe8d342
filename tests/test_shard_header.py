"""What a shard says of itself is looked at before it is used: one line where it cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data.actions import ActionSpec
from data.shards.build_info import shard_name
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards


def edit_header(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Write into a shard what `edit` gives for its description."""
    with h5py.File(path, "r+") as file:
        description = json.loads(str(file.attrs["description"]))
        file.attrs["description"] = json.dumps(edit(description))


ODD_DESCRIPTIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a list": (lambda d: [d], "no fields by name"),
    "a number": (lambda d: 7, "no fields by name"),
    "no image_size": (lambda d: {k: v for k, v in d.items() if k != "image_size"}, "image_size"),
    "an odd image_size": (lambda d: d | {"image_size": [32, "32"]}, "image_size"),
    "a huge image_size": (lambda d: d | {"image_size": [32, 10**9]}, "image_size"),
    "a negative image_size": (lambda d: d | {"image_size": [32, -32]}, "image_size"),
    "other frames": (lambda d: d | {"image_size": [32, 16]}, "described as .32, 16, 3."),
    "no actions": (lambda d: d | {"actions": None}, "no fields by name"),
    "actions of a newer version": (
        lambda d: d | {"actions": d["actions"] | {"chunk": 4}},
        "has the field 'chunk', which this version does not know",
    ),
    "an unknown kind": (lambda d: d | {"actions": d["actions"] | {"kind": "text"}}, "kind 'text'"),
    "no names": (
        lambda d: d | {"actions": {k: v for k, v in d["actions"].items() if k != "names"}},
        "lacks the field 'names'",
    ),
    "names of numbers": (lambda d: d | {"actions": d["actions"] | {"names": [1, 2]}}, "names"),
    "one limit": (lambda d: d | {"actions": d["actions"] | {"low": [0.0]}}, "1 lower"),
    "a limit that is not finite": (
        lambda d: d | {"actions": d["actions"] | {"high": [512.0, float("inf")]}},
        "limits from 0.0 to inf",
    ),
    "limits of nothing": (lambda d: d | {"actions": d["actions"] | {"high": [0.0, 9]}}, "0.0 to"),
    "odd factors": (lambda d: d | {"actions": d["actions"] | {"factors": [3]}}, "factors"),
    "more actions": (
        lambda d: d | {"actions": ActionSpec("discrete", ("a", "b")).as_dict()},
        r"actions are \[2\], described as \[\]",
    ),
    "odd state names": (lambda d: d | {"state_names": [1]}, "state_names"),
    "other states": (lambda d: d | {"state_names": ["x"]}, r"states are \[5\]"),
    "an odd source": (lambda d: d | {"source": ["toy"]}, "source"),
}


@pytest.mark.parametrize("name", ODD_DESCRIPTIONS)
def test_an_odd_description_is_one_line(tmp_path, name):
    edit, reason = ODD_DESCRIPTIONS[name]
    path = write_toy_shards(tmp_path) / shard_name(0)
    edit_header(path, edit)
    with pytest.raises(ValueError, match=f"{path} is damaged .*{reason}.*delete that one") as error:
        EpisodeDataset(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("text", ["[" * 100_000, "", "{", "\udc80"])
def test_a_description_that_cannot_be_read_is_one_line(tmp_path, text):
    path = write_toy_shards(tmp_path) / shard_name(0)
    with h5py.File(path, "r+") as file:
        file.attrs["description"] = text.encode(errors="surrogateescape")
    with pytest.raises(ValueError, match="is damaged"):
        EpisodeDataset(tmp_path)


def replace_column(path: Path, name: str, values: Any, **options: Any) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, data=values, **options)


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("episode_split", np.array([0, 0, 0, 0, 0, -1], np.int8), "splits are not all from 0 to 2"),
        ("episode_split", np.array([0, 0, 0, 0, 0, 3], np.uint8), "splits are not all from 0 to 2"),
        ("episode_split", np.zeros(6), "episode_split are no row"),
        ("episode_split", np.zeros(5, np.uint8), "lack a split or a source"),
        ("episode_source", np.full(6, -1), "sources are not all 0 or above"),
        ("episode_ends", np.zeros((6, 2), np.int64), "episode_ends are no row"),
        ("episode_ends", np.arange(500), "episode_ends are no row of at most 144"),
        ("rewards", np.zeros(144), "rewards are float64, not float32"),
        ("rewards", np.zeros((144, 2), np.float32), r"rewards are \[2\], described as \[\]"),
        ("actions", np.zeros((144, 2), np.int64), "actions are int64, not float32"),
        ("frames", np.zeros((144, 32, 32, 3), np.float32), "frames are float32"),
    ],
)
def test_an_odd_column_is_one_line(tmp_path, name, values, reason):
    path = write_toy_shards(tmp_path) / shard_name(0)
    chunks = {} if name.startswith("episode") else {"chunks": values.shape}
    replace_column(path, name, values, **chunks)
    with pytest.raises(ValueError, match=f"is damaged .*{reason}"):
        EpisodeDataset(tmp_path)


def test_a_column_that_lacks_chunks_is_not_read_as_zeros(tmp_path):
    path = write_toy_shards(tmp_path) / shard_name(0)
    with h5py.File(path, "r+") as file:
        column: Any = file["frames"]
        whole = column[:]
        del file["frames"]
        frames = file.create_dataset("frames", whole.shape, whole.dtype, chunks=(16, 32, 32, 3))
        frames[:100] = whole[:100]
    with pytest.raises(ValueError, match="frames lack some of their 9 chunks"):
        EpisodeDataset(tmp_path)


def test_a_column_of_an_impossible_length_is_one_line(tmp_path):
    path = write_toy_shards(tmp_path) / shard_name(0)
    with h5py.File(path, "r+") as file:
        for name in ("frames", "actions", "rewards", "states", "contacts", "terminals"):
            column: Any = file[name]
            shape, dtype = column.shape[1:], column.dtype
            del file[name]
            file.create_dataset(name, (10**12, *shape), dtype, chunks=(16, *shape))
    with pytest.raises(ValueError, match="lack some of their"):
        EpisodeDataset(tmp_path)


def test_a_shard_that_refers_to_other_files_is_refused(tmp_path):
    path = write_toy_shards(tmp_path) / shard_name(0)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(144)) * 4)
    replace_column(path, "rewards", None, shape=(144,), dtype="f4", external=[(secret, 0, 576)])
    with pytest.raises(ValueError, match="has no rewards of its own"):
        EpisodeDataset(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["rewards"]
        file["rewards"] = h5py.ExternalLink(str(tmp_path / shard_name(1)), "rewards")
    with pytest.raises(ValueError, match="has no rewards of its own"):
        EpisodeDataset(tmp_path)
