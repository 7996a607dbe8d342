"""What each latent action does: the motion that it causes, over many starts.

Letters: B starts, C codes, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from models.dynamics.dynamics import State
from models.world import World
from pipeline.inference.image_motion import image_motion

MOVES = 0.25 / 64  # of the width: a mean motion below that is no direction


@dataclass(frozen=True)
class ActionEffects:
    """Of each code, over `n` starts."""

    motion: Tensor  # (C, 2) mean motion, x and y as shares of the image's width
    consistency: (
        Tensor  # (C,) mean cosine of two starts' motions, from 0 to 1; 0 where nothing moves
    )
    n: int


@torch.inference_mode()
def measure_effects(world: World, states: list[State], steps: int = 1) -> ActionEffects:
    """Take each code from all states, for `steps` steps, and read the motion from the frames that
    are decoded before and after."""
    motions: list[list[Tensor]] = [[] for _ in range(world.actions.size)]
    with tqdm(total=len(states) * len(motions), desc="actions", leave=False) as progress:
        for state in states:
            before = world.decode(state)
            for code, found in enumerate(motions):
                found.append(image_motion(before, decode_after(world, state, code, steps)).cpu())
                progress.update()
    motion = torch.stack([torch.cat(found) for found in motions])  # (C, B, 2)
    length = motion.norm(dim=-1, keepdim=True)
    unit = torch.where(length > MOVES, motion / length.clamp(min=1e-9), 0.0)
    return ActionEffects(motion.mean(1), mean_cosine(unit), motion.shape[1])


def decode_after(world: World, state: State, code: int, steps: int = 1) -> Tensor:
    """Decode what a code, held for `steps` steps, leads to: (B, 3, H, W) uint8."""
    action = torch.full((len(state),), code, device=world.device)
    for _ in range(steps):
        state = world.step(state, action)
    return world.decode(state)


def mean_cosine(unit: Tensor) -> Tensor:
    """Mean cosine of two different ones of B vectors of length 1 or 0: (..., B, 2) -> (...), at
    least 0."""
    count = unit.shape[-2]
    total = unit.sum(-2).square().sum(-1) - unit.square().sum((-1, -2))
    return (total / max(1, count * (count - 1))).clamp(min=0)
