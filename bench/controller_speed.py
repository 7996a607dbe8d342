"""One decision of a fitted controller: a new frame comes in, an action goes out."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.pairs import Incorrect, Options, Row, time_call, value_row
from bench.play_speed import DEFAULT_RUN, check_world, start_clip
from models.world import World
from pipeline.inference.load import load_controller, load_world

AREA = "controller"
TARGET, STRETCH = 20.0, 5.0
TOLERANCE = 0.02  # of an action, which spans 2: frames are encoded alone or with those before them


def rows(options: Options) -> Iterator[Row]:
    """Batch 1, encoding included, in the run that was named or the one with the project."""
    run = options.run or DEFAULT_RUN
    world = load_world(run, options.device)
    controller = load_controller(run, world)
    frames, actions = start_clip(run, world)
    check_world(world, frames, actions)
    decide = DecisionLoop(world, controller, frames, actions)
    for _ in range(10):
        decide()
    decide.check(frames, actions)
    count = 50 if options.quick else 200
    taken = sorted(time_call(decide, options.device) for _ in range(count))
    late = 1000 * taken[math.ceil(0.95 * count) - 1]
    yield value_row(
        AREA, f"observe and act, {run.name}", "ms", 1000 * taken[count // 2],
        target=TARGET, stretch=STRETCH, rounds=count, note=f"95% within {late:.1f} ms",
    )  # fmt: skip


class DecisionLoop:
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
        expected = self.controller.act(state).cpu()  # type: ignore[attr-defined]
        action, expected_action = (
            self.world.actions.normalize(a).float() for a in (self.action, expected)
        )
        if not (action - expected_action).abs().max() <= TOLERANCE:
            raise Incorrect(
                f"the decision is {action.tolist()} after observing, {expected_action.tolist()} anew"
            )
