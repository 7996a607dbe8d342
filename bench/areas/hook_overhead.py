"""What hooks cost: a step of play with a collector attached that nobody reads, against without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from bench.areas.play_speed import DEFAULT_RUN, check_world, start_clip
from bench.races.pairs import Options, Row, compare, race
from models.hooks.layer_collector import LayerCollector
from pipeline.inference.load_world import load_world

AREA = "hooks"
PEER = "no collector"
TARGET, STRETCH = 1 / 1.05, 1 / 1.01
STEPS = 20
ROUNDS = 10
"""Times as many rounds as elsewhere: a step takes a millisecond, a collector a few microseconds."""


def rows(options: Options) -> Iterator[Row]:
    """Race a step at batch 1 in --run or the run in checkpoints/, one layer and all collected."""
    run = options.run or DEFAULT_RUN
    world = load_world(run, options.device)
    frames, actions = start_clip(run, world)
    check_world(world, frames, actions)
    state = world.reset(frames[None], actions[None, : len(frames) - 1])
    action = actions[None, len(frames) - 1].to(options.device)
    layers = stacked_layers(world.dynamics)

    def steps() -> None:
        with torch.inference_mode():
            for _ in range(STEPS):
                world.step(state, action)

    for paths in ([layers[len(layers) // 2]], layers):
        collector = LayerCollector(world.dynamics, paths)
        runners = {"ours": within(collector, steps), PEER: within(None, steps)}
        seconds = race(runners, options.rounds * ROUNDS, device=options.device)
        what = f"{STEPS} steps of {run.name}, {len(paths)} of {len(layers)} layers collected"
        yield from compare(AREA, what, seconds, {PEER: (TARGET, STRETCH)})


def stacked_layers(dynamics: nn.Module) -> list[str]:
    """The paths of the longest stack of layers in a model; ValueError where there is none."""
    stacks = [
        [f"{name}.{number}" for number in range(len(module))]
        for name, module in dynamics.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
    ]
    if not stacks:
        raise ValueError(f"{type(dynamics).__name__} has no stack of layers to collect from")
    return max(stacks, key=len)


def within(collector: LayerCollector | None, steps: Callable[[], None]) -> Callable[[], None]:
    """Attach a collector around each call of `steps`."""
    attached: AbstractContextManager[Any] = nullcontext() if collector is None else collector

    def run() -> None:
        with attached:
            steps()

    return run
