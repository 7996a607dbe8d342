"""Play without a window: the frames of a video, one for each step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tqdm import tqdm

from pipeline.play.action_input import pointer_position
from pipeline.play.buttons import Buttons
from pipeline.play.panels import Panel, add_text, compose_panels
from pipeline.play.player import Player, Start

Actor = Callable[[int], np.ndarray]
"""Step -> action in the environment's units, (A,) or ()."""
Truth = Literal["simulator", "dataset"]


@dataclass(frozen=True)
class Scene:
    """What a frame of the video shows next to the model rollout."""

    size: int
    """Height of a panel, in pixels."""
    truth: Truth | None = None
    goal: np.ndarray | None = None
    """(H, W, 3) uint8."""
    buttons: Buttons | None = None
    """Of latent actions, shown below the panels."""
    has_status: bool = False
    """Say below the panels which step it is, and how the simulator stands."""

    def num_bytes(self, image_size: tuple[int, int]) -> int:
        """Return what a frame takes in memory, without text and buttons, for images of (H, W)."""
        panels = 1 + (self.truth is not None) + (self.goal is not None)
        return 3 * panels * self.size * round(image_size[1] * self.size / image_size[0])

    def render(self, player: Player) -> np.ndarray:
        """Draw the goal, the truth and the model rollout, and the keys of the last action."""
        panels = [] if self.goal is None else [Panel("goal", self.goal, live=False)]
        if self.truth == "simulator":
            panels.append(Panel("simulator", player.simulator_frame()))
        elif self.truth == "dataset":
            panels.append(Panel("dataset", player.dataset_frame()))
        panels.append(Panel("world model", player.model_frame))
        spec, last_action = player.action_spec, player.actions[-1] if player.actions else None
        pointer = None if last_action is None else pointer_position(spec, last_action)
        frame = compose_panels(panels, self.size, pointer)
        if self.buttons is not None:
            frame = self.buttons.draw(frame, None if last_action is None else int(last_action))
        parts = []
        if self.has_status:
            parts.append(f"step {player.steps}")
            if self.truth == "simulator" and player.simulator is not None:
                parts.append(player.simulator_status())
        if spec.factors:
            parts.append("start" if last_action is None else spec.describe(int(last_action)))
        return add_text(frame, ["  ".join(parts)]) if parts else frame


@dataclass(frozen=True)
class Played:
    """What came of playing."""

    frames: list[np.ndarray]
    """Of the video: the start, then one for each step."""
    frames_per_second: float
    coverages: list[float]
    """Of the simulator, at the start and after each step; empty where it is not shown, or has
    none."""


def play_headless(
    player: Player,
    start: Start,
    act: Actor,
    steps: int,
    scene: Scene,
    solved: float | None = None,
) -> Played:
    """Take `steps` steps from a start, or fewer: until the simulator's episode has ended, where it
    is shown, or its coverage is `solved`."""
    player.reset(start)
    shown = player.simulator if scene.truth == "simulator" else None
    frames = [scene.render(player)]
    coverages: list[float] = []

    def measure() -> None:
        covered = None if shown is None else shown.coverage()
        if covered is not None:
            coverages.append(covered)

    measure()
    start_time = time.perf_counter()
    for step in tqdm(range(steps), "play"):
        player.step(act(step))
        frames.append(scene.render(player))
        measure()
        is_solved = solved is not None and coverages and coverages[-1] >= solved
        if is_solved or (shown is not None and shown.ended):
            break
    return Played(frames, player.steps / (time.perf_counter() - start_time), coverages)
