"""Steps of a dataset with the latent actions that a world infers, and the true ones to measure by.

Letters: n steps, T frames, A numbers of a true action, K numbers of a latent one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.actions import ActionSpec
from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from data.shards.shard_header import Split
from evaluation.measures.sample_clips import sample_clips
from evaluation.readers.fit_estimator import layout_of
from models.world import World

BATCH = 64
AGENT = ("agent_x", "agent_y")
STILL_ACTION = 0.1  # of half the range of an action
NUM_DIRECTIONS = 8


@dataclass(frozen=True)
class Transitions:
    """Steps that are sampled evenly over the episodes of a split."""

    frames: Tensor  # (n, 2, 3, H, W) uint8, before and after
    codes: np.ndarray  # (n,) int64, inferred
    vectors: np.ndarray | None  # (n, K) float, before they are quantized
    actions: np.ndarray | None  # (n, A) float32 or (n,) int64; None where the data has none
    motion: np.ndarray | None
    """(n, 2): what the true action did in the frame, x and y; see `read_motion`."""
    still: float
    """Length of a motion below which nothing moved."""
    places: np.ndarray | None
    """(n, A), where actions are places: the agent's own before the step; None elsewhere."""
    sources: np.ndarray  # (n,)

    def __len__(self) -> int:
        return len(self.codes)

    def labels(self) -> np.ndarray | None:
        """Name the true actions, (n,) int64: codes as they are, motions by their direction; None
        where neither is known."""
        if self.actions is not None and self.actions.ndim == 1:
            return self.actions
        return None if self.motion is None else directions(self.motion, self.still)


@torch.inference_mode()
def read_transitions(
    world: World, dataset: EpisodeDataset, split: Split, count: int, seed: int = 0
) -> Transitions:
    """Read steps, each inferred with as much of the past as the world uses."""
    clips = Clips(dataset, split, world.context + 1, memory_limit=0)
    indices, sources = sample_clips(clips, count, seed)
    frames, codes, vectors, actions, states = [], [], [], [], []
    for part in np.array_split(indices, -(-len(indices) // BATCH)):
        clip = clips.batch(part)
        frames.append(clip.frames[:, -2:].contiguous())
        codes.append(world.actions_of(clip.frames, clip.actions)[:, -1].cpu())
        vectors.append(_vectors(world, clip.frames))
        actions.append(clip.actions[:, -2])
        states.append(clip.states[:, -2:] if clip.states is not None else None)
    known = [v for v in vectors if v is not None]
    true_actions = torch.cat(actions).numpy() if dataset.has("actions") else None
    pairs = [s for s in states if s is not None]
    all_states = torch.cat(pairs).numpy() if pairs else None
    motion, still = read_motion(dataset, true_actions, all_states)
    columns = agent_columns(dataset)
    has_places = dataset.actions.pointer and columns is not None and all_states is not None
    return Transitions(
        torch.cat(frames),
        torch.cat(codes).numpy(),
        torch.cat(known).numpy() if known else None,
        true_actions,
        motion,
        still,
        all_states[:, 0, columns] if has_places else None,  # type: ignore[index]
        sources,
    )


def read_motion(
    dataset: EpisodeDataset, actions: np.ndarray | None, states: np.ndarray | None
) -> tuple[np.ndarray | None, float]:
    """Give what true actions did, (n, 2), and the length below which that is nothing.

    states: (n, 2, S), before and after. Where they have the agent's place, it is its displacement,
    as a share of the frame, and less than a pixel is nothing; else, for two numbers that are no
    place, the action itself, in [-1, 1]. None where neither is known.
    """
    spec, size, columns = dataset.actions, world_size(dataset), agent_columns(dataset)
    if states is not None and size and columns is not None:
        moved = (states[:, 1] - states[:, 0])[:, columns] / size
        return moved, 1 / dataset.image_size[1]
    if actions is None or spec.kind != "continuous" or spec.size != 2 or spec.pointer:
        return None, 0.0
    return spec.normalize(torch.from_numpy(actions)).numpy(), STILL_ACTION


def agent_columns(dataset: EpisodeDataset) -> list[int] | None:
    """Find the agent's place, x and y, among the numbers of a state."""
    names = dataset.state_names
    known = dataset.has("states") and set(AGENT) <= set(names)
    return [names.index(name) for name in AGENT] if known else None


def world_size(dataset: EpisodeDataset) -> float:
    """Give the width of a frame in units of the states; 0 where it is not known."""
    layout = layout_of(dataset)
    if layout is not None:
        return layout.world_size
    spec: ActionSpec = dataset.actions
    return spec.high[0] - spec.low[0] if spec.pointer else 0.0


def directions(motion: np.ndarray, still: float) -> np.ndarray:
    """Sort motions (n, 2) into 8 directions, of 45 degrees each, from 1 on, or 0 for still."""
    angle = np.arctan2(motion[:, 1], motion[:, 0])
    sector = np.round(angle / (2 * np.pi / NUM_DIRECTIONS)).astype(np.int64) % NUM_DIRECTIONS
    return np.where(np.linalg.norm(motion, axis=1) < still, 0, 1 + sector)


def _vectors(world: World, frames: Tensor) -> Tensor | None:
    """(B, T, 3, H, W) uint8 -> (B, K) of the last step; None where the model does not show them."""
    try:
        return world.latent_action_vectors(frames)[:, -1].float().cpu()
    except ValueError:
        return None
