"""The recorded episodes that a checkpoint was trained on.

A checkpoint's field `recordings`: `dataset`, the fingerprint of the shards; `train`, the digests of
their training episodes, (E,) int64, ascending; `inherited`, those of the episodes that the weights
it began with were trained on, None where these do not remember them.  The field is None, or absent,
in checkpoints that were written before there was one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.shards.episode_dataset import EpisodeDataset
from pipeline.checkpoint import Checkpoint, train_command

TrainedOn = dict[str, Any]
NONE = torch.zeros(0, dtype=torch.int64)


def recordings_of(dataset: EpisodeDataset, *known: Checkpoint | None) -> TrainedOn:
    """Describe the training episodes of a dataset.

    known: checkpoints that may be trained on the same shards, whose digests are then taken over.
    """
    fingerprint = dataset.fingerprint
    for checkpoint in known:
        found = read_recordings(checkpoint) if checkpoint else None
        if found and found["dataset"] == fingerprint:
            return found | {"inherited": NONE}
    digests = np.unique(episode_digests(dataset, dataset.episodes("train")))
    return {"dataset": fingerprint, "train": torch.tensor(digests), "inherited": NONE}


def read_recordings(checkpoint: Checkpoint) -> TrainedOn | None:
    """The field of a checkpoint; None where it has none that can be read."""
    found = checkpoint.get("recordings")
    if not found or not isinstance(found.get("dataset"), str) or not _is_list(found.get("train")):
        return None
    inherited = found.get("inherited")
    return found | {"inherited": inherited if _is_list(inherited) else None}


def check_parent_recordings(
    parent: Checkpoint, path: Path, recordings: TrainedOn, dataset: EpisodeDataset
) -> None:
    """Raise ValueError where `parent`, the checkpoint at `path`, was trained on episodes that are
    not for training in `dataset`: held-out figures would be of episodes that were trained on.

    It may have been trained on fewer.
    """
    found = read_recordings(parent)
    if found is None or found["dataset"] == recordings["dataset"]:
        return
    other = np.setdiff1d(found["train"].numpy(), recordings["train"].numpy())
    if not len(other):
        return
    raise ValueError(
        f"{path} was trained on other recordings: {_describe(other, found, dataset)}; train it "
        f"again with {train_command(parent['stage'], path)} --restart, or put those shards back"
    )


def episode_digests(dataset: EpisodeDataset, episodes: Iterable[int]) -> np.ndarray:
    """Hash the length, the actions and the first frame of each episode: (E,) int64.

    Without actions the last frame counts too.  Neither the split nor the shard nor the number of an
    episode changes its digest; recordings of equal actions from an equal frame have the same.
    """
    has_actions = dataset.has("actions")
    actions = dataset.read_rows("actions", 0, dataset.num_frames) if has_actions else None
    digests = []
    for episode in episodes:
        first, length = int(dataset.first_rows[episode]), dataset.length(episode)
        last = first + length - 1
        hashed = hashlib.sha256(str(length).encode())
        hashed.update(dataset.read_rows("frames", first, first + 1).tobytes())
        if actions is None:
            hashed.update(dataset.read_rows("frames", last, last + 1).tobytes())
        else:
            hashed.update(actions[first:last].tobytes())  # the last action leads nowhere
        digests.append(int.from_bytes(hashed.digest()[:8], "little", signed=True))
    return np.array(digests, np.int64)


def _describe(other: np.ndarray, found: TrainedOn, dataset: EpisodeDataset) -> str:
    held_out = [e for split in ("validation", "test") for e in dataset.episodes(split)]
    leaked = int(np.isin(episode_digests(dataset, held_out), other).sum())
    if leaked:
        return f"{leaked} of the {len(held_out)} held-out episodes of {dataset.folder} among them"
    return (
        f"{len(other)} of its {len(found['train'])} training episodes are not in {dataset.folder}"
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.int64 and value.dim() == 1
