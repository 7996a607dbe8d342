"""Steer imagined futures along a direction of a layer, and measure what moves (activation addition,
arXiv:2308.10248).

The direction is what the layer's output changes by, per pixel that a quantity of the state moves
over a block of actions, all others held: a linear probe from states to the layer.

Letters: B starts, T frames, D width of a layer, S numbers of a state, K doses.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import Split
from evaluation.measures.intervals import bootstrap
from evaluation.measures.sample_clips import sample_clips
from evaluation.measures.world_clips import world_clips
from models.hooks.layer_collector import LayerCollector
from models.hooks.layer_manipulator import AddDirection, LayerManipulator
from models.world import World

AT_ONCE = 256  # clips


class StateReader(Protocol):
    """Reads states from images (evaluation/readers/estimator.py)."""

    def predict(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, S)."""
        ...


def find_direction(
    world: World,
    dataset: EpisodeDataset,
    path: str,
    quantity: str,
    num_steps: int,
    num_clips: int = 2000,
    split: Split = "train",
    seed: int = 0,
) -> Tensor:
    """Fit the direction, (D,), in which the output of the layer at `path` changes for each pixel
    that `quantity`, a name of the dataset's states, moves within `num_steps` actions."""
    moves, outputs = _read(world, dataset, path, num_steps, num_clips, split, seed)
    names = list(dataset.state_names)
    if quantity not in names:
        raise ValueError(f"the states have no {quantity!r}; there are {', '.join(names)}")
    inputs = torch.cat([moves, torch.ones(len(moves), 1)], 1)
    scale = inputs.std(0).clamp(min=1e-6)
    scale[-1] = 1
    fitted = torch.linalg.lstsq(inputs / scale, outputs).solution / scale[:, None]
    return fitted[names.index(quantity)]


@torch.no_grad()
def steering(
    world: World,
    reader: StateReader,
    dataset: EpisodeDataset,
    path: str,
    direction: Tensor,
    quantity: str,
    doses: Sequence[float],
    num_steps: int = 10,
    num_starts: int = 256,
    split: Split = "test",
    seed: int = 0,
) -> dict[str, Any]:
    """Imagine `num_steps` true actions from held-out starts, steered and not, and read both.

    `n` starts of `sources` recordings; of each dose, in pixels a block of actions, `shift`: the
    mean difference of every number of the state (an angle in radians) with its 95% interval over
    recordings; `increasing`, whether the quantity's shift rises with the dose.
    """
    clips = world_clips(world, dataset, split, world.context + num_steps)
    indices, sources = sample_clips(clips, num_starts, seed)
    names = list(dataset.state_names)
    shifts: list[list[Tensor]] = [[] for _ in doses]
    for part in np.array_split(indices, -(-len(indices) // AT_ONCE)):
        clip = clips.batch(part)
        start = world.reset(clip.frames[:, : world.context], clip.actions[:, : world.context - 1])
        actions = clip.actions[:, world.context - 1 : world.context - 1 + num_steps]
        plain = reader.predict(world.decode(world.rollout(start, actions))).cpu()
        for dose, found in zip(doses, shifts, strict=True):
            steered = AddDirection(direction, dose)
            with LayerManipulator(world.dynamics, {quantity: (path, steered)}):
                moved = reader.predict(world.decode(world.rollout(start, actions))).cpu()
            found.append(moved - plain)
    rows = [
        _row(dose, torch.cat(found), sources, names)
        for dose, found in zip(doses, shifts, strict=True)
    ]
    means = [row["shift"][quantity]["mean"] for row in sorted(rows, key=lambda row: row["dose"])]
    return {
        "n": len(indices),
        "sources": len(set(sources.tolist())),
        "path": path,
        "quantity": quantity,
        "num_steps": num_steps,
        "doses": rows,
        "increasing": all(low < high for low, high in pairwise(means)),
    }


def _row(dose: float, shift: Tensor, sources: np.ndarray, names: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"dose": dose, "shift": {}}
    for column, name in enumerate(names):
        values = shift[:, column].double()
        if name.endswith("angle"):  # the short way round
            values = torch.atan2(values.sin(), values.cos())
        low, high = bootstrap(values.numpy(), sources)
        row["shift"][name] = {"mean": float(values.mean()), "low": low, "high": high}
    return row


@torch.no_grad()
def _read(
    world: World,
    dataset: EpisodeDataset,
    path: str,
    num_steps: int,
    num_clips: int,
    split: Split,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """What states move by within `num_steps`, (n, S), and the layer's output, (n, D), the mean over
    tokens."""
    clips = world_clips(world, dataset, split, world.context + num_steps)
    indices, _ = sample_clips(clips, num_clips, seed)
    moves, outputs = [], []
    for part in np.array_split(indices, -(-len(indices) // AT_ONCE)):
        clip = clips.batch(part)
        assert clip.states is not None
        with LayerCollector(world.dynamics, [path], keep="first") as layers:
            start = world.reset(
                clip.frames[:, : world.context], clip.actions[:, : world.context - 1]
            )
            layers.clear()  # what a start reads of the past
            first = clip.actions[:, world.context - 1 : world.context - 1 + num_steps]
            world.rollout(start, first)
        move = clip.states[:, -1] - clip.states[:, world.context - 1]
        for column, name in enumerate(dataset.state_names):
            if name.endswith("angle"):
                move[:, column] = torch.atan2(move[:, column].sin(), move[:, column].cos())
        moves.append(move)
        outputs.append(layers[path].float().flatten(1, -2).mean(1).cpu())
    return torch.cat(moves), torch.cat(outputs)
