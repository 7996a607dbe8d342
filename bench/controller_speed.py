"""One decision of a fitted controller: a new frame comes in, an action goes out."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.pairs import Options, Row, Wrong, clocked, value
from bench.play_speed import GIVEN, check_world, start_of
from models.world import World
from pipeline.inference.load import load_controller, load_world

AREA = "controller"
BAR, AIM = 20.0, 5.0
NEAR = 0.02  # of an action, which spans 2: frames are encoded alone or with those before them


def rows(options: Options) -> Iterator[Row]:
    """Batch 1, encoding included, in the run that was named or the one with the project."""
    run = options.run or GIVEN
    world = load_world(run, options.device)
    controller = load_controller(run, world)
    frames, actions = start_of(run, world)
    check_world(world, frames, actions)
    decide = Decisions(world, controller, frames, actions)
    for _ in range(10):
        decide()
    decide.check(frames, actions)
    count = 50 if options.quick else 200
    taken = sorted(clocked(decide, options.device) for _ in range(count))
    late = 1000 * taken[math.ceil(0.95 * count) - 1]
    yield value(
        AREA, f"observe and act, {run.name}", "ms", 1000 * taken[count // 2],
        bar=BAR, aim=AIM, rounds=count, note=f"95% within {late:.1f} ms",
    )  # fmt: skip


class Decisions:
    """Take in a real frame and decide, again and again."""

    def __init__(self, world: World, controller: object, frames: Tensor, actions: Tensor) -> None:
        self.world, self.controller = world, controller
        self.frame = frames[None, -1]
        with torch.inference_mode():
            self.state = world.reset(frames[None], actions[None, : len(frames) - 1])
            self.action = actions[None, len(frames) - 1]

    @torch.inference_mode()
    def __call__(self) -> None:
        self.state = self.world.observe(self.state, self.action, self.frame)
        self.action = self.controller.act(self.state).cpu()  # type: ignore[attr-defined]

    @torch.inference_mode()
    def check(self, frames: Tensor, actions: Tensor) -> None:
        """Raise Wrong unless, with the same draws, a world that is entered at the same frame leads
        to the same decision as one in which that was observed."""
        torch.manual_seed(0)
        self()
        state = self.world.reset(frames[None], actions[None, : len(frames) - 1])
        torch.manual_seed(0)
        entered = self.controller.act(state).cpu()  # type: ignore[attr-defined]
        seen, wanted = (self.world.actions.normalize(a).float() for a in (self.action, entered))
        if not (seen - wanted).abs().max() <= NEAR:
            raise Wrong(f"the decision is {seen.tolist()} after observing, {wanted.tolist()} anew")
