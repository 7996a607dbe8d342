"""A parallel step of a Llama dynamics model between tensors of fixed shapes, for an export.

Letters: B states, N codes a frame, C frames of context, P patches, H heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.dynamics.dynamics import State
from models.dynamics.llama import LlamaDynamics, LlamaMemory
from models.layers.transformer import Cache


def pack(dynamics: LlamaDynamics, state: State) -> dict[str, Tensor]:
    """The frame's codes, (B, N), and the context before it, (B, layers, H, (C - 1) (1 + P), E)
    twice.

    ValueError for a state that lacks some of its context, or where codes come one by one.
    """
    memory, rows = state.memory, (dynamics.context - 1) * (1 + dynamics.latents.num_patches)
    assert isinstance(memory, LlamaMemory)
    if dynamics.config.decoding != "parallel":
        raise ValueError("codes that are predicted one by one have no step of fixed shapes")
    cache = memory.cache
    if memory.has_action:  # frames that no step has read yet
        cache = dynamics.blocks(memory.latents, memory.actions, memory.has_action, cache)[1]
    if not rows or cache is None or cache.keys[0].shape[2] < rows:
        raise ValueError(
            f"a step of fixed shapes needs a context of 2 frames or more, and a state with all of "
            f"it: {dynamics.context} real frames"
        )
    return _packed(state.latents, cache)


def step_packed(
    dynamics: LlamaDynamics, packed: dict[str, Tensor], action: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """As `LlamaDynamics.step`."""
    codes = packed["codes"]
    cache = Cache(*(list(packed[name].unbind(1)) for name in ("keys", "values")))
    out, cache = dynamics.blocks(codes[:, None], action[:, None], [True], cache)
    summary, patches = out[:, 0, 0], out[:, 0, 1:]
    after = dynamics.sampling.sample(dynamics.logits(patches, codes))
    reward = dynamics.reward_head(summary) if dynamics.config.rewards else 0 * summary[:, 0]
    return after, reward, _packed(after, cache)


def _packed(codes: Tensor, cache: Cache) -> dict[str, Tensor]:
    return {
        "codes": codes,
        "keys": torch.stack(cache.keys, 1),
        "values": torch.stack(cache.values, 1),
    }
