"""One person at the page: their game, what they have pressed, and what they are to see."""

from __future__ import annotations

import io
import secrets
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.play.browser.messages import Blur, Button, Input, Key, Pointer, frame_message
from pipeline.play.game import Game
from pipeline.play.player import Player

MOST_IN_FLIGHT = 2  # frames that are sent and not yet drawn
MOST_INPUTS = 256  # that wait for a step
JPEG_QUALITY = 95
COSTLY = ("r", "t", "g", "c", "b", "v", "z")  # keys that may take as long as a step


class Guest:
    """Inputs come in from the event loop; all else is the model's thread's, between two of them."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(18)
        self.game: Game | None = None
        """None while they wait in line."""
        self.inbox: deque[Input] = deque(maxlen=MOST_INPUTS)
        self.connection: Any = None
        self.last_input = self.last_seen = time.monotonic()
        self.sent = self.acked = self.dropped = 0
        self.took_long = False
        """The last step's inputs held a key that may take long."""
        self.last_costly = 0
        """The step of the last such key."""
        self.recordings: dict[int, Path] = {}
        self.recorded = 0
        """How many were begun to be written, which numbers them."""
        self.is_writing = False
        self.status: dict[str, Any] = {}
        """As it was sent last."""
        self._shown: tuple[Any, ...] = ()
        self._at = 0.0
        self._held: set[str] = set()

    @property
    def player(self) -> Player:
        assert self.game is not None
        return self.game.player

    def receive(self, message: Input) -> None:
        """Keep an input for the next step."""
        self.last_input = time.monotonic()
        self.inbox.append(message)

    def connect(self, connection: Any) -> None:
        """Show everything again, on a page that knows nothing."""
        self.connection, self.sent, self.acked = connection, 0, 0
        self.inbox.append(Blur(t="blur"))
        self.status, self._shown = {}, ()
        self.last_input = self.last_seen = time.monotonic()

    def take_inputs(self, may_take_long: bool = True) -> None:
        """Give the game what came in since the last step, up to a second key that may take long, or
        the first where none may: it waits for the next step, as all others' games do for this one.
        """
        assert self.game is not None
        taken, self.took_long = "", False
        while self.inbox:
            key = self._costly_key(self.game, self.inbox[0])
            if key and not may_take_long:
                return
            if key and taken and (key, taken) != ("r", "r"):
                return
            message = self.inbox.popleft()
            if key and taken:
                continue  # one reset is as good as many
            taken = taken or key
            self.took_long = bool(taken)
            if isinstance(message, Key):
                self._key(self.game, message)
            elif isinstance(message, Pointer):
                self.game.point(message.x, message.y)
            elif isinstance(message, Button):
                self.game.mouse_button(message.down)
            else:
                self.release_all()
                continue
            self._at = max(self._at, message.at)

    def release_all(self) -> None:
        """Let go of what a page that lost the focus, or the connection, cannot release."""
        assert self.game is not None
        for key in self._held:
            self.game.release(key)
        self._held.clear()
        self.game.mouse_button(False)
        self.game.lift_pointer()

    def next_frame(self, model_ms: float) -> bytes | None:
        """Give what is new to see, unless the page is behind: then a later one will do."""
        assert self.game is not None
        panels = self.game.panels()
        shown = tuple(id(panel.image) for panel in panels)
        # a blend with a plan is a new image each time, so its parts are compared
        if self.game.autopilot is not None and self.game.autopilot.plan_frame is not None:
            plan = self.game.autopilot.plan_frame
            shown = (id(self.player.model_frame), id(plan), *shown[1:])
        if shown == self._shown:
            return None
        if self.sent - self.acked >= MOST_IN_FLIGHT:
            self.dropped += 1
            return None
        self._kept = panels  # an id is of what still lives
        self._shown = shown
        self.sent += 1
        images = [panel.image for panel in panels]
        return frame_message(self.sent, self._at, model_ms, encode(np.concatenate(images, 1)))

    def next_status(self, more: dict[str, Any]) -> dict[str, Any] | None:
        """Give what is to be told, if it has changed."""
        assert self.game is not None
        game, player = self.game, self.player
        autopilot = game.autopilot
        pointer = game.action_input.pointer
        status = {
            "type": "status",
            "step": player.steps,
            "reward": round(player.reward, 3) if player.world.has_rewards else None,
            "simulator": (
                player.simulator_status() if player.simulator and game.show_simulator else ""
            ),
            "action": game.describe_action() if game.person_acts else "",
            "pointer": None if pointer is None else [round(float(p), 4) for p in pointer],
            "panels": [panel.caption for panel in game.panels()],
            "paused": game.paused,
            "recording": 0 if game.recording is None else len(game.recording.frames),
            "rewinding": game.rewinding,
            "acts": "you" if game.person_acts else "planner" if game.planner_acts else "controller",
            "planner": "" if autopilot is None else autopilot.describe(),
            "message": game.message,
            "dropped": self.dropped,
        } | more
        if status == self.status:
            return None
        self.status = status
        return status

    def _costly_key(self, game: Game, message: Input) -> str:
        """The key, where it may take as long as a step; else nothing."""
        if not isinstance(message, Key) or not message.down or message.repeated:
            return ""
        steers = game.action_input.handles(message.key)
        return message.key if message.key in COSTLY and not steers else ""

    def _key(self, game: Game, message: Key) -> None:
        if not message.down:
            self._held.discard(message.key)
            game.release(message.key)
        elif message.key not in ("q", "escape"):  # a page is closed, not quit
            self._held.add(message.key)
            game.press(message.key, message.repeated, message.label)


def encode(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as JPEG: at this size ten times faster than WebP, and some 2 KB."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
