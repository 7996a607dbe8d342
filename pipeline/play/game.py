"""The game around a player: keys, pause, pace, recording, and the line under the picture.

Time and the window come from outside, so that it runs, and is tested, without a display.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.shards import write_whole
from pipeline.play.action_input import make_hand, pointer_of
from pipeline.play.panels import Panel, compose, share_at, with_lines
from pipeline.play.player import Player, Start, Starts
from pipeline.video import write_film

HELP = "R reset  P/space pause  N one step  V record  C controller  B simulator  H help  Q quit"
RECENT = 30  # frames over which speed and latency are averaged


class Game:
    """One window's worth of play; `tick` is one frame."""

    def __init__(
        self,
        player: Player,
        starts: Starts,
        first: Start,
        folder: Path,
        size: int,
        fps: float,
        beside: bool = False,
        automatic: bool = False,
    ) -> None:
        """folder: where recordings go.  size: pixels of a picture's side.  fps: of recordings."""
        self.player, self.starts, self.folder = player, starts, folder
        self.size, self.fps, self.beside = size, fps, beside
        self.automatic, self.paused, self.help, self.over = automatic, False, True, False
        self.message = ""
        self.hand = make_hand(player.world.actions)
        self.recording: list[np.ndarray] | None = None
        self._recorded_from = 0
        self._one_step = False
        self._ticks: deque[float] = deque(maxlen=RECENT)
        self._taken: deque[float] = deque(maxlen=RECENT)
        self.reset(first)

    def reset(self, start: Start | None = None) -> None:
        """Go to a start, a drawn one if none is given."""
        if self.recording is not None:
            self._finish_recording()
        self.player.reset(start or self.starts.draw())
        self.hand.rest(self.player.start.next_actions[0])

    def press(self, key: str) -> None:
        """Follow one key; those that steer go to the hand."""
        self.message = ""
        if self.hand.claims(key):
            if not self.automatic:
                self.hand.press(key)
        elif key in ("q", "escape"):
            self.over = True
        elif key == "r":
            self.reset()
        elif key in ("p", "space"):
            self.paused = not self.paused
        elif key == "n":
            self.paused = self._one_step = True
        elif key == "v":
            self._toggle_recording()
        elif key == "c":
            self._toggle_controller()
        elif key == "b":
            if self.player.simulator is None:
                self.message = "no simulator is known for these recordings"
            else:
                self.beside = not self.beside
        elif key == "h":
            self.help = not self.help
        elif not self.automatic:
            self.hand.press(key)

    def point(self, x: int, y: int) -> None:
        """Follow the mouse, in pixels of the picture that `picture` gave."""
        if not self.automatic:
            height, width = self.player.imagined.shape[:2]
            self.hand.point(*share_at(x, y, self.size, 1 + self.beside, width / height))

    def button(self, down: bool) -> None:
        """Follow the left mouse button."""
        if not self.automatic:
            self.hand.button(down)

    def tick(self) -> np.ndarray:
        """Take one step, unless paused, and give the picture to show."""
        began = time.perf_counter()
        steps = not self.paused or self._one_step
        if steps:
            self._one_step = False
            if self.automatic:
                self.hand.rest(self.player.controllers_choice())
            self.player.step(self.hand.action if self.automatic else self.hand.take())
            if self.recording is not None:
                self.recording.append(self.scene())
        picture = self.picture()
        if steps:
            self._ticks.append(began)
            self._taken.append(time.perf_counter() - began)
        else:
            self._ticks.clear()  # a pause is not slowness
        return picture

    def scene(self) -> np.ndarray:
        """Draw the panels alone, as they are recorded."""
        panels = [Panel("imagined", self.player.imagined)]
        if self.beside:
            panels.append(Panel("simulator, same actions", self.player.simulated()))
        return compose(panels, self.size, self.hand.pointer)

    def picture(self) -> np.ndarray:
        """Draw the panels and the lines beneath them."""
        lines = [self.status()]
        if self.help:
            lines += [f"{self.hand.help}  {HELP}"]
        return with_lines(self.scene(), lines)

    def status(self) -> str:
        """Say speed, latency and where things stand, in one line."""
        spans = np.diff(self._ticks)
        speed = f"{1 / spans.mean():.1f}" if len(spans) else "-"
        latency = f"{1000 * np.mean(self._taken):.0f}" if self._taken else "-"
        parts = [f"{speed} frames/s", f"{latency} ms", f"step {self.player.steps}"]
        if self.player.world.dynamics.has_rewards:
            parts.append(f"reward {self.player.reward:.2f}")
        if self.player.simulator is not None and self.beside:
            parts.append(f"coverage {self.player.simulator.coverage():.2f}")
        parts += ["controller"] if self.automatic else [self.hand.describe()]
        parts += ["PAUSED"] if self.paused else []
        parts += ["REC"] if self.recording is not None else []
        return "  ".join(p for p in [*parts, self.message] if p)

    def finish(self) -> None:
        """Keep what is being recorded."""
        if self.recording is not None:
            self._finish_recording()

    def _toggle_controller(self) -> None:
        if self.player.controller is None:
            self.message = "no controller: train_controller.py makes one"
        else:
            self.automatic = not self.automatic

    def _toggle_recording(self) -> None:
        if self.recording is not None:
            self._finish_recording()
        else:
            self.recording, self._recorded_from = [self.scene()], self.player.steps

    def _finish_recording(self) -> None:
        assert self.recording is not None
        shots, self.recording = self.recording, None
        largest = max(shot.shape[1] for shot in shots)  # B may have been pressed meanwhile
        shots = [np.pad(s, ((0, 0), (0, largest - s.shape[1]), (0, 0))) for s in shots]
        folder = _next_folder(self.folder)
        write_film(folder, shots, self.fps)
        write_actions(folder, self.player.actions[self._recorded_from :])
        self.message = f"kept in {folder}"
        print(f"recorded {len(shots)} frames: {folder}")


def headless_scene(
    player: Player, size: int, truth: str | None, goal: np.ndarray | None = None
) -> np.ndarray:
    """Draw what a film shows: the goal and the truth, where there are, beside what is imagined, and
    beneath it which keys have led there."""
    panels = [] if goal is None else [Panel("goal", goal, live=False)]
    if truth == "simulator":
        panels.append(Panel("simulator", player.simulated()))
    elif truth == "recording":
        panels.append(Panel("recording", player.recorded()))
    panels.append(Panel("imagined", player.imagined))
    spec, last = player.world.actions, player.actions[-1] if player.actions else None
    scene = compose(panels, size, None if last is None else pointer_of(spec, last))
    if not spec.factors:
        return scene
    return with_lines(scene, ["start" if last is None else spec.say(int(last))])


def write_actions(folder: Path, actions: Sequence[np.ndarray]) -> None:
    """Write FOLDER/actions.npy, whole or not at all."""
    memory = io.BytesIO()
    np.save(memory, np.array(actions))
    write_whole(folder / "actions.npy", memory.getbuffer())


def _next_folder(parent: Path) -> Path:
    number = 0
    while (parent / f"recording-{number:03d}").exists():
        number += 1
    return parent / f"recording-{number:03d}"
