"""Write whole episodes as a shard."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from data.io.files import atomic_write
from data.shards.episodes import Episode, check_episode, concat_column
from data.shards.shard_header import FORMAT, SPLITS, STEP_FIELDS

FRAMES_PER_CHUNK = 16  # a clip of 16 frames touches two chunks at most


def write_shard(path: Path, episodes: list[Episode], description: dict[str, Any]) -> None:
    """Write whole episodes with their description, atomically.

    `description` holds at least `image_size` [H, W] and `actions` (ActionSpec.as_dict()).
    """
    if not episodes:
        raise ValueError(f"{path} would hold no episode; a shard needs at least one")
    for number, episode in enumerate(episodes):
        where = f"episode {number} of {path}"
        check_episode(episode, where, description)
        if not (0 <= episode.split < len(SPLITS) and episode.source >= 0):
            raise ValueError(
                f"{where} has split {episode.split} and source {episode.source}, but a split is "
                f"from 0 to {len(SPLITS) - 1}, and a source 0 or above"
            )
    columns = {name: concat_column(episodes, name, str(path)) for name in STEP_FIELDS}

    memory = io.BytesIO()  # a full disk then fails in a plain file write, not in the HDF5 library
    with h5py.File(memory, "w") as file:
        file.attrs["description"] = json.dumps({"format": FORMAT} | description, sort_keys=True)
        for name, column in columns.items():
            if column is not None:
                rows = min(FRAMES_PER_CHUNK if name == "frames" else 4096, len(column))
                file.create_dataset(
                    name,
                    data=column,
                    chunks=(rows, *column.shape[1:]),
                    compression=hdf5plugin.Blosc(cname="lz4", shuffle=hdf5plugin.Blosc.NOSHUFFLE),
                    fletcher32=True,  # a flipped bit is an error, not another image
                )
        file["episode_ends"] = np.cumsum([len(e) for e in episodes], dtype=np.int64)
        file["episode_split"] = np.array([e.split for e in episodes], np.uint8)
        file["episode_source"] = np.array([e.source for e in episodes], np.int64)
        if any(e.notes for e in episodes):
            file["episode_notes"] = [json.dumps(e.notes, sort_keys=True) for e in episodes]
    atomic_write(path, memory.getbuffer())
