"""How fast one person could play: one stream, every frame decoded."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

WARM_UP = 20  # a step is recorded at the fourth call of a shape, and five actions have five shapes


@torch.inference_mode()
def measure_play(world: Any, frames: Tensor, actions: Tensor, steps: int = 120) -> dict[str, Any]:
    """Time world.step + world.decode to uint8 in main memory, for `steps` frames after warm-up.

    frames: (T, 3, H, W) uint8 of real context; actions: (n, ...) to go through again and again.
    """
    context = len(frames)
    state = world.reset(
        frames[None].to(world.device), actions[None, : context - 1].to(world.device)
    )
    moves = actions.to(world.device)
    seconds = []
    for step in range(WARM_UP + steps):
        started = time.perf_counter()
        state = world.step(state, moves[None, step % len(moves)])
        world.decode(state).cpu()  # waits for the device
        seconds.append(time.perf_counter() - started)
    taken = np.array(seconds[WARM_UP:])
    return {
        "n": steps,
        "frames_per_second": float(steps / taken.sum()),
        "latency_ms_p50": float(1000 * np.quantile(taken, 0.5)),
        "latency_ms_p95": float(1000 * np.quantile(taken, 0.95)),
    }
