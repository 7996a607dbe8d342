"""Speed of interactive play: one stream, every frame decoded."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.world import World

# A step is captured as a CUDA graph at the fourth call of a shape; five actions have five shapes.
WARMUP_STEPS = 20


@torch.inference_mode()
def measure_play(
    world: World, frames: Tensor, actions: Tensor, num_steps: int = 120
) -> dict[str, Any]:
    """Time world.step + world.decode to uint8 in main memory, for `num_steps` after warm-up.

    frames: (T, 3, H, W) uint8 of real context; actions: (n, ...), repeated in a cycle.
    """
    context = len(frames)
    state = world.reset(
        frames[None].to(world.device), actions[None, : context - 1].to(world.device)
    )
    device_actions = actions.to(world.device)
    seconds = []
    for step in range(WARMUP_STEPS + num_steps):
        start = time.perf_counter()
        state = world.step(state, device_actions[None, step % len(device_actions)])
        world.decode(state).cpu()  # waits for the device
        seconds.append(time.perf_counter() - start)
    step_seconds = np.array(seconds[WARMUP_STEPS:])
    return {
        "n": num_steps,
        "frames_per_second": float(num_steps / step_seconds.sum()),
        "latency_ms_p50": float(1000 * np.quantile(step_seconds, 0.5)),
        "latency_ms_p95": float(1000 * np.quantile(step_seconds, 0.95)),
    }
