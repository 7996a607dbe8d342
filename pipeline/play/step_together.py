"""Players in one world, stepped as a batch: states that are alike are stacked, and taken apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.dynamics.dynamics import State
from pipeline.play.player import Player
from pipeline.pytree import flatten, unflatten


def _raise(number: int, problem: ValueError) -> None:
    raise problem


@torch.inference_mode()
def step_together(
    players: Sequence[Player],
    actions: Sequence[np.ndarray],
    refused: Callable[[int, ValueError], None] = _raise,
) -> int:
    """Let each player take its action, (A,) or (), in one forward for all whose states are alike;
    return the number of forwards.

    refused: is told the number of a player whose simulator refuses, and why; the others go on.
    """
    able, taken, given = [], [], []
    for number, (player, action) in enumerate(zip(players, actions, strict=True)):
        own_action = player.as_action(action)
        try:
            given.append(player.world_action(own_action))
        except ValueError as problem:
            refused(number, problem)
        else:
            able.append(number)
            taken.append(own_action)
    joined = join([players[number].state for number in able])
    for rows, state in joined:
        world = players[able[rows[0]]].world
        after = world.step(state, torch.cat([given[row] for row in rows]))
        frames = world.decode(after).permute(0, 2, 3, 1).cpu().numpy()
        for at, row in enumerate(rows):
            own = after if len(rows) == 1 else after.select(torch.tensor([at], device=world.device))
            try:
                players[able[row]].arrive(taken[row], own, frames[at].copy())
            except ValueError as problem:
                refused(able[row], problem)
    return len(joined)


def join(states: Sequence[State]) -> list[tuple[list[int], State]]:
    """Stack states of one row each, whose tensors have the same shapes: those that remember as
    many frames and actions.  Returns which states a batch is of, in their order, and the batch."""
    groups: dict[str, tuple[list[int], Any, list[list[Tensor]]]] = {}
    for number, state in enumerate(states):
        tensors: list[Tensor] = []
        spec = flatten(state, tensors)
        key = f"{spec} {[(tuple(t.shape), t.dtype) for t in tensors]}"
        rows, _, each = groups.setdefault(key, ([], spec, []))
        rows.append(number)
        each.append(tensors)
    return [
        (rows, states[rows[0]] if len(rows) == 1 else _stacked(spec, each))
        for rows, spec, each in groups.values()
    ]


def _stacked(spec: Any, each: Sequence[Sequence[Tensor]]) -> State:
    return unflatten(spec, iter([torch.cat(same) for same in zip(*each, strict=True)]))
