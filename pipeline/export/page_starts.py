"""Where a page's games start: states with all their context, and a goal for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.actions import as_tensor
from data.shards.episode_dataset import EpisodeDataset
from models.dynamics.dynamics import State
from models.world import World
from pipeline.export.graphs import UNCHANGED
from pipeline.play.player import StartSampler


@dataclass
class PageStart:
    """Rows of one: P patches, D latent width, A action numbers, K true actions."""

    state: State
    packed: dict[str, Tensor]
    """What it remembers, as `pack` gives it."""
    kept: list[Tensor]
    """Of codes: their vectors (1, P, D), and what they lose of the frame, (1, 3, H, W) float32."""
    actions: Tensor  # (K, A), the true ones from here on, in the environment's units
    last_action: np.ndarray  # (1, A) float32 in [-1, 1], or codes
    frame: np.ndarray  # (1, 3, H, W) uint8
    goal_frame: np.ndarray  # (1, 3, H, W) uint8
    goal: np.ndarray  # (1, P, D) float32

    def as_bytes(self) -> bytes:
        """State, latents, what codes have besides, last action, both frames and the goal, one
        behind the other."""
        parts = [*self.packed.values(), self.state.latents, *self.kept]
        arrays = [part.numpy() for part in parts]
        arrays += [self.last_action, self.frame, self.goal_frame, self.goal]
        return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)


def pack(world: World, state: State) -> dict[str, Tensor]:
    """What a state remembers, as tensors whose shapes no step changes."""
    packed = world.dynamics.pack(state)
    if state.frame_residual is not None:
        packed[UNCHANGED] = state.frame_residual.unchanged
    return packed


@torch.no_grad()
def page_starts(
    world: World, dataset: EpisodeDataset, count: int, goal_offset: int, seed: int
) -> list[PageStart]:
    """Sample starts of the test split, each with the frame `goal_offset` steps later as its goal,
    or the last one of its episode."""
    sampler = StartSampler(dataset, "test", world.context, seed)
    starts = []
    for _ in range(count):
        start = sampler.sample(goal_offset)
        frames = torch.from_numpy(start.frames).permute(0, 3, 1, 2)[None]
        past = as_tensor(start.actions)
        state = world.reset(frames, past[None])
        later = start.next_frames[:goal_offset][-1]
        goal_frame = np.ascontiguousarray(later.transpose(2, 0, 1))[None]
        starts.append(
            PageStart(
                state,
                pack(world, state),
                _kept(world, state),
                as_tensor(start.next_actions),
                world.actions.normalize(past[-1:]).numpy(),
                np.ascontiguousarray(frames[:, -1].numpy()),
                goal_frame,
                world.vectors(world.embed(torch.from_numpy(goal_frame))).numpy(),
            )
        )
    return starts


def _kept(world: World, state: State) -> list[Tensor]:
    if state.frame_residual is None:
        return []
    world.decode(state)  # which finds the residual
    assert state.frame_residual.residual is not None
    return [world.vectors(state.latents), state.frame_residual.residual]
