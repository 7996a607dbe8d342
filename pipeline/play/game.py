"""The game around a player: keys, pause, pace, video recording, and the status line.

It knows no window and no browser, which both play it; so it is tested without either.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.io.files import writable_folder
from pipeline.play.action_input import make_action_input
from pipeline.play.autopilot import Autopilot
from pipeline.play.buttons import Buttons
from pipeline.play.panels import Panel, add_text, blend, compose_panels, panel_position
from pipeline.play.player import Player, Start, Starts
from pipeline.play.recording import Recording, next_folder

PLACES = "keys count by their place, named as on a QWERTY keyboard; arrows are arrows everywhere"
HELP = (
    "R reset  P/space pause  N one step  Z back while held  V record  C controller  T planner  "
    "G freeze goal  B simulator  H help  Q quit"
)
ONCE = ("q", "escape", "r", "p", "space", "v", "c", "t", "g", "b", "h", "z")  # however long held
PLAN_OPACITY = 0.3  # of what a plan ends in, over the frame
STATS_FRAMES = 30  # frames over which speed and latency are averaged


class Game:
    """Plays one frame per `tick`."""

    def __init__(
        self,
        player: Player,
        start_sampler: Starts,
        first_start: Start,
        folder: Path,
        size: int,
        fps: float,
        show_simulator: bool = False,
        use_controller: bool = False,
        autopilot: Autopilot | None = None,
        buttons: Buttons | None = None,
        save: Callable[[Recording], str] | None = None,
        longest_recording: int = 0,
    ) -> None:
        """folder: for videos.  size: height of a panel in pixels.  fps: frames/s of videos.
        buttons: of latent actions.
        save: what becomes of a recording, and says so; by default it is written into the folder.
        longest_recording: frames; 0 is as many as there are."""
        self.player, self.start_sampler, self.folder = player, start_sampler, folder
        self.size, self.fps, self.show_simulator = size, fps, show_simulator
        self.use_controller, self.autopilot, self.buttons = use_controller, autopilot, buttons
        self.paused, self.show_help, self.quit_requested = False, True, False
        self.message = ""
        self.action_input = make_action_input(player.action_spec)
        self.recording: Recording | None = None
        self.save, self.longest_recording = save or self._write, longest_recording
        self.rewinding = False
        self._step_once = False
        self._tick_times: deque[float] = deque(maxlen=STATS_FRAMES)
        self._latencies: deque[float] = deque(maxlen=STATS_FRAMES)
        self.reset(first_start)

    def reset(self, start: Start | None = None) -> None:
        """Go to a start, a sampled one if none is given."""
        if self.recording is not None:
            self._finish_recording()
        self.player.reset(start or self.start_sampler.sample())
        self.action_input.set_action(self.player.start.next_actions[0])
        if self.autopilot is not None:
            self.autopilot.reset()

    @property
    def planner_acts(self) -> bool:
        return self.autopilot is not None and self.autopilot.active

    @property
    def person_acts(self) -> bool:
        return not self.use_controller and not self.planner_acts

    def press(self, key: str, repeated: bool = False, label: str = "") -> None:
        """Handle one key, by its place; keys that steer go to the action input.

        repeated: it is held.  label: what the layout calls it, which the status line tells.
        """
        if repeated and key in ONCE and not self.action_input.handles(key):
            return
        self.message = _place_of(key, label)
        if self.action_input.handles(key):
            if self.person_acts:
                self.action_input.press(key)
        elif key in ("q", "escape"):
            self.quit_requested = True
        elif key == "r":
            self.reset()
        elif key in ("p", "space"):
            self.paused = not self.paused
        elif key == "n":
            self.paused = self._step_once = True
        elif key == "z":
            self.rewinding = True
        elif key == "v":
            self._toggle_recording()
        elif key == "c":
            self._toggle_controller()
        elif key == "t":
            self.toggle_planner()
        elif key == "g":
            self._freeze_goal()
        elif key == "b":
            if self.player.simulator is None:
                self.message = "no simulator is known for this dataset"
            else:
                self.show_simulator = not self.show_simulator
        elif key == "h":
            self.show_help = not self.show_help
        elif self.person_acts:
            self.action_input.press(key)

    def release(self, key: str) -> None:
        """Handle a key that comes up."""
        self.action_input.release(key)
        if key == "z" and self.rewinding:
            self.rewinding = False
            if self.autopilot is not None:
                self.autopilot.reset()  # it plans from here

    def move_pointer(self, x: int, y: int) -> None:
        """Follow the mouse, in pixels of what `tick` returned."""
        height, width = self.player.model_frame.shape[:2]
        self.point(*panel_position(x, y, self.size, 1 + self.show_simulator, width / height))

    def point(self, x: float, y: float) -> None:
        """Follow the mouse, in fractions of a panel from its left and top edge."""
        if self.person_acts:
            self.action_input.move_pointer(x, y)

    def lift_pointer(self) -> None:
        """The pointer goes on elsewhere: nothing is to be made of the way there."""
        self.action_input.lift_pointer()

    def mouse_button(self, down: bool) -> None:
        """Follow the left mouse button."""
        if self.person_acts:
            self.action_input.mouse_button(down)

    def tick(self) -> np.ndarray:
        """Take one step, unless paused or planning, and return the image to show."""
        start_time = time.perf_counter()
        action = self.choose()
        if action is not None:
            self.player.step(action)
            self.after_step()
        frame = self.render()
        if action is not None:
            self._tick_times.append(start_time)
            self._latencies.append(time.perf_counter() - start_time)
        return frame

    def choose(self) -> np.ndarray | None:
        """Return the action of this tick, (A,) or (), which the player is to take; None where there
        is none: it is paused, goes back, or a plan is being made."""
        if self.rewinding:
            self._step_back()
            return None
        if self.paused and not self._step_once:
            self._tick_times.clear()  # a pause does not count as slow
            return None
        action = self._next_action()
        self._step_once = self._step_once and action is None
        return action

    def after_step(self) -> None:
        """Plan on, and record, once the player has taken the action."""
        if self.planner_acts:
            assert self.autopilot is not None
            self.autopilot.think()
        if self.recording is not None:
            self.recording.frames.append(self.render_panels())
            if len(self.recording.frames) == self.longest_recording:
                self._finish_recording()

    def _step_back(self) -> None:
        if self.recording is not None and self.player.steps == self.recording.first_step:
            return
        if not self.player.step_back():
            self.message = "no step to go back to"
            return
        if self.recording is not None:  # of the branch that is kept
            self.recording.frames.pop()
        start = self.player.start
        past = self.player.actions or [start.next_actions[0]]
        self.action_input.set_action(past[-1])

    def _next_action(self) -> np.ndarray | None:
        """Return the action of whoever acts, (A,) or (); None while it is planned."""
        if self.person_acts:
            return self.action_input.get_action()
        if self.planner_acts:
            assert self.autopilot is not None
            action = self.autopilot.next_action()
        else:
            action = self.player.controller_action()
        if action is not None:
            self.action_input.set_action(action)
        return action

    def render_panels(self) -> np.ndarray:
        """Draw the panels alone, as videos show them."""
        frame = compose_panels(self.panels(), self.size, self.action_input.pointer)
        if self.buttons is None:
            return frame
        return self.buttons.draw(frame, int(self.action_input.action))

    def panels(self) -> list[Panel]:
        """Give what is shown next to each other, as small as the world makes it."""
        model_frame = self.player.model_frame
        plan_frame = None if self.autopilot is None else self.autopilot.plan_frame
        if plan_frame is not None:
            model_frame = blend(model_frame, plan_frame, PLAN_OPACITY)
        panels = [Panel("world model", model_frame)]
        if self.show_simulator:
            try:
                panels.append(Panel("simulator, same actions", self.player.simulator_frame()))
            except ValueError as problem:  # as without the seed of an episode: it is hidden again
                self.message, self.show_simulator = str(problem), False
        return panels

    def render(self) -> np.ndarray:
        """Draw the panels, the status line, that of the planner, and the help."""
        lines = [self.status()]
        if self.autopilot is not None and (planner_line := self.autopilot.describe()):
            lines.append(planner_line)  # of its own: it changes in length
        if self.show_help:
            lines += [f"{self.help}  {HELP}"]
        return add_text(self.render_panels(), lines)

    @property
    def help(self) -> str:
        """The keys that steer."""
        if self.buttons is None:
            return self.action_input.help
        count = len(self.buttons.names)
        digits = [self.buttons.describe(code) for code in range(min(9, count))]
        return "  ".join([*digits, ", . others" if count > 9 else ", . the next"])

    def status(self) -> str:
        """Format speed, latency, step, reward and mode in one line."""
        intervals = np.diff(self._tick_times)
        frames_per_second = f"{1 / intervals.mean():.1f}" if len(intervals) else "-"
        latency = f"{1000 * np.mean(self._latencies):.0f}" if self._latencies else "-"
        parts = [f"{frames_per_second} frames/s", f"{latency} ms", f"step {self.player.steps}"]
        if self.player.world.has_rewards:
            parts.append(f"reward {self.player.reward:.2f}")
        if self.player.simulator is not None and self.show_simulator:
            parts.append(self.player.simulator_status())
        if self.person_acts:
            parts.append(self.describe_action())
        parts += ["controller"] if self.use_controller else []
        parts += ["PAUSED"] if self.paused else []
        parts += ["REC"] if self.recording is not None else []
        return "  ".join(p for p in [*parts, self.message] if p)

    def describe_action(self) -> str:
        """Describe the action that is held, as its button is called."""
        if self.buttons is None:
            return self.action_input.describe()
        return self.buttons.describe(int(self.action_input.action))

    def close(self) -> None:
        """Write the video that is being recorded."""
        if self.recording is not None:
            self._finish_recording()

    def _toggle_controller(self) -> None:
        if self.player.controller is None:
            self.message = "no controller: train_controller.py trains one"
        else:
            self.use_controller = not self.use_controller
            if self.use_controller and self.planner_acts:
                self.toggle_planner()

    def toggle_planner(self) -> None:
        """Let the planner act, or hand back."""
        self._tell(None if self.autopilot is None else self.autopilot.toggle())
        if self.planner_acts:
            self.use_controller = False

    def _freeze_goal(self) -> None:
        self._tell(None if self.autopilot is None else self.autopilot.freeze())

    def _tell(self, missing: str | None) -> None:
        """Say what a planner lacks; None: there is none at all."""
        if missing is None:
            self.message = "no planner here"
        elif missing:
            assert self.autopilot is not None
            hint = "  G makes the present image the goal" if self.autopilot.lacks_goal else ""
            self.message = missing + hint

    def _toggle_recording(self) -> None:
        if self.recording is not None:
            return self._finish_recording()
        try:
            writable_folder(self.folder, "--out")
        except ValueError as problem:
            self.message = str(problem)
        else:
            self.recording = Recording(self.player.steps, [self.render_panels()])

    def _finish_recording(self) -> None:
        assert self.recording is not None
        recording, self.recording = self.recording, None
        recording.actions = self.player.actions[recording.first_step :]
        self.message = self.save(recording)

    def _write(self, recording: Recording) -> str:
        folder = next_folder(self.folder)
        recording.write(folder, self.fps)
        print(f"recorded {len(recording.frames)} frames: {folder}")
        return f"saved to {folder}"


def _place_of(key: str, label: str) -> str:
    """Say where a letter lies, if the layout calls it otherwise."""
    different = len(label) == 1 and label.isascii() and label.lower() != key
    return f"{label.upper()} is {key.upper()} here (keys by place)" if different else ""
