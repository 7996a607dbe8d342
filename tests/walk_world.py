"""A world of keys that renders the last action as a shade, and episodes to start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pointer_world import Nothing
from torch import Tensor

from data.shards.build_info import shard_name
from data.shards.episodes import Episode
from data.shards.write_shard import write_shard
from data.vpt.vpt_actions import CameraQuantizer, action_spec
from models.dynamics.dynamics import State
from models.tokenizers.tokenizer import LatentSpec

SPEC = action_spec(CameraQuantizer())
NOTHING = 60
"""The no-op code."""


class WalkWorld:
    """The latent of a state is its last action."""

    actions = data_actions = SPEC
    context, temporal_context = 2, 1
    image_size = (32, 32)
    latents = state_spec = LatentSpec("discrete", (1, 1), 1, SPEC.size)
    has_rewards, has_decoder, infers_actions = False, True, False
    device = torch.device("cpu")

    def reset(self, frames: Tensor, actions: Tensor) -> State:
        rows = torch.ones(len(frames))
        return State(torch.full((len(frames), 1), NOTHING), 0 * rows, rows, Nothing())

    def step(self, state: State, action: Tensor) -> State:
        return State(action[:, None], state.reward, state.continues, state.memory)

    def decode(self, state: State) -> Tensor:
        shade = (state.latents[:, :1, None, None] % 256).to(torch.uint8)
        return shade.expand(-1, 3, 32, 32)


def write_walks(folder: Path, episodes: int = 3, length: int = 12) -> Path:
    """Write shards of gray frames with no-op actions."""
    folder.mkdir(parents=True)
    made = [
        Episode(
            np.full((length, 32, 32, 3), 90, np.uint8),
            np.full(length, NOTHING, np.int64),
            split=number % 3,
            source=number,
        )
        for number in range(episodes)
    ]
    description = {"source": "walks", "image_size": [32, 32], "actions": SPEC.as_dict()}
    write_shard(folder / shard_name(0), made, description)
    return folder
