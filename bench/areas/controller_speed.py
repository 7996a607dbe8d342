"""The latency of a trained controller: a new frame in, an action out."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.areas.play_speed import DEFAULT_RUN, check_world, start_clip
from bench.races.pairs import Incorrect, Options, Row, time_call, value_row
from models.world import World
from pipeline.inference.load_controllers import load_controller
from pipeline.inference.load_world import load_world

AREA = "controller"
TARGET, STRETCH = 20.0, 5.0
TOLERANCE = 0.02  # of an action, whose range is 2: frames are encoded alone or in a batch


def rows(options: Options) -> Iterator[Row]:
    """Measure decisions at batch 1, encoding included, in --run or the run in checkpoints/."""
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
    """Observes a real frame and decides, repeatedly."""

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
        """Raise Incorrect unless, with the same random numbers, the action after observing a frame
        is that of a world reset at the same frame."""
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
                f"the action is {action.tolist()} after observing a frame, but "
                f"{expected_action.tolist()} after a reset at it"
            )
