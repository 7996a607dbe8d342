"""Who plays and who waits, and the loop that steps all who play at once.

The event loop holds the connections.  One thread holds the model: games are stepped, and their
inputs read, there alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.play.browser.guest import Guest
from pipeline.play.browser.server_config import ServerConfig
from pipeline.play.buttons import moves
from pipeline.play.game import Game
from pipeline.play.recording import Recording
from pipeline.play.step_together import step_together

FILES = ("rollout.gif", "rollout.mp4", "actions.npy")
IDLE, NO_GAME = 4001, 4003  # why a connection is ended
KEPT_RECORDINGS = 3  # of a guest; older ones are removed
COSTLY_A_STEP = 2  # keys that may take as long as a step, of all guests together
LONGEST_RECORDING = 1200  # frames, which are held in memory
MakeGame = Callable[[Path, Callable[[Recording], str], int], Game]
"""A folder, what becomes of a recording, and its most frames -> a game at a start of its own."""


@dataclass
class Update:
    """What a guest is to be sent after a step."""

    guest: Guest
    frame: bytes | None
    status: dict[str, Any] | None


class Room:
    def __init__(self, make_game: MakeGame, config: ServerConfig, fps: float, folder: Path) -> None:
        """folder: for recordings, until they are downloaded."""
        self.make_game, self.config, self.fps, self.folder = make_game, config, fps, folder
        self.guests: dict[str, Guest] = {}
        """By their tokens: those who play, and after them those in line, as they came."""
        self.tick_ms = 0.0
        self._ticks = 0
        self._model = ThreadPoolExecutor(1, "model")
        self._writer = ThreadPoolExecutor(1, "recordings")
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def playing(self) -> list[Guest]:
        return [guest for guest in self.guests.values() if guest.game is not None]

    @property
    def waiting(self) -> list[Guest]:
        return [guest for guest in self.guests.values() if guest.game is None]

    def enter(self, session: str) -> Guest | None:
        """Give a new guest, or the one of a lost connection; None where even the line is full."""
        if session in self.guests:
            return self.guests[session]
        if len(self.guests) >= self.config.max_players + self.config.max_waiting:
            return None
        guest = Guest()
        self.guests[guest.token] = guest
        return guest

    def leave(self, guest: Guest) -> None:
        """Give up a place."""
        if self.guests.pop(guest.token, None) is not None:
            guest.game = None
            self._writer.submit(_remove, self.folder / guest.token)

    def leave_connection(self, guest: Guest, connection: Any) -> None:
        """A connection has ended; the place is kept for a while, unless another one took over."""
        if guest.connection is connection:
            guest.connection, guest.last_seen = None, time.monotonic()
            if guest.game is None:
                self.leave(guest)  # a place in line is not kept

    async def run(self) -> None:
        """Step all who play, `fps` times a second, until cancelled."""
        self._loop = asyncio.get_running_loop()
        due = time.monotonic()
        while True:
            await self.seat()
            here = [guest for guest in self.playing if guest.connection is not None]
            if here:
                more = {"players": len(self.playing), "waiting": len(self.waiting)}
                updates = await self._loop.run_in_executor(self._model, self.tick, here, more)
                for update in updates:
                    if update.guest.connection is not None:
                        update.guest.connection.show(update.frame, update.status)
            self.dismiss()
            due = max(due + 1 / self.fps, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def seat(self) -> None:
        """Give a free place to who has waited longest, and tell the others theirs.

        One at a time: a game takes as long to begin as many steps, and others are playing.
        """
        assert self._loop is not None
        is_free = len(self.playing) < self.config.max_players
        for guest in self.waiting[:1] if is_free else ():
            try:
                game = await self._loop.run_in_executor(self._model, self._begin, guest)
            except ValueError as problem:  # a simulator that cannot go to the start, for one
                if guest.connection is not None:
                    guest.connection.end(NO_GAME, f"no game could begin: {problem}"[:120])
                self.leave(guest)
                continue
            if guest.token in self.guests and guest.connection is not None:
                guest.game = game
                guest.last_input = time.monotonic()
                guest.connection.tell(self.welcome(guest))
        for place, guest in enumerate(self.waiting, 1):
            line = {"type": "line", "place": place, "of": len(self.waiting)}
            if guest.connection is not None and line != guest.status:
                guest.status = line
                guest.connection.tell(line)

    def dismiss(self) -> None:
        """Free the places of those who do nothing, or do not come back."""
        now = time.monotonic()
        for guest in self.playing:
            if guest.connection is None:
                if now - guest.last_seen > self.config.reconnect_seconds:
                    self.leave(guest)
            elif now - guest.last_input > 60 * self.config.idle_minutes:
                minutes = f"{self.config.idle_minutes:g}"
                guest.connection.end(IDLE, f"nothing was pressed for {minutes} minutes")
                self.leave(guest)

    def tick(self, guests: Sequence[Guest], more: dict[str, Any]) -> list[Update]:
        """In the model's thread: read inputs, take a step of all, and encode what is to be seen."""
        start = time.perf_counter()
        acting, costly = [], 0
        self._ticks += 1
        # whose last key that takes long is longest ago comes first
        for guest in sorted(guests, key=lambda guest: guest.last_costly):
            action = self._guarded(guest, partial(_choose, may_take_long=costly < COSTLY_A_STEP))
            if guest.took_long:
                costly, guest.last_costly = costly + 1, self._ticks
            if action is not None:
                acting.append((guest, action))
        refused: set[int] = set()

        def refuse(number: int, problem: ValueError) -> None:
            refused.add(number)
            _pause(acting[number][0], problem)

        step_together([guest.player for guest, _ in acting], [action for _, action in acting],
                      refuse)  # fmt: skip
        self.tick_ms = 1000 * (time.perf_counter() - start)
        for number, (guest, _) in enumerate(acting):
            if number not in refused:
                self._guarded(guest, _after_step)
        updates = []
        for guest in guests:
            frame = self._guarded(guest, lambda guest: guest.next_frame(self.tick_ms))
            status = self._guarded(guest, lambda guest: guest.next_status(more))
            updates.append(Update(guest, frame, status))
        return updates

    def welcome(self, guest: Guest) -> dict[str, Any]:
        """What a page needs to know before its first frame."""
        assert guest.game is not None
        game = guest.game
        spec = game.player.action_spec
        return {
            "type": "welcome",
            "session": guest.token,
            "size": list(game.player.world.image_size),
            "pointer": spec.pointer,
            "lock": bool(spec.factors),
            "keys": [game.help],
            "actions": _actions(game),
            "simulator": game.player.simulator is not None,
            "controller": game.player.controller is not None,
            "fps": self.fps,
        }

    def close(self) -> None:
        for thread in (self._model, self._writer):
            thread.shutdown(wait=True, cancel_futures=True)

    def _begin(self, guest: Guest) -> Game:
        folder = self.folder / guest.token
        return self.make_game(folder, lambda recording: self._save(guest, recording),
                              LONGEST_RECORDING)  # fmt: skip

    def _guarded(self, guest: Guest, act: Callable[[Guest], Any]) -> Any:
        """A game may refuse, as a simulator without the seed of an episode does: it says why, and
        the others play on."""
        try:
            return act(guest) if guest.game is not None else None
        except ValueError as problem:
            _pause(guest, problem)
            return None

    def _save(self, guest: Guest, recording: Recording) -> str:
        """Write a recording while the others play on, and tell where it can be downloaded.

        One at a time of each guest: those that wait are held in memory.
        """
        if guest.is_writing:
            return "this recording is not kept: the one before is still being written"
        guest.is_writing = True
        number, guest.recorded = guest.recorded, guest.recorded + 1
        folder = self.folder / guest.token / f"recording-{number:03d}"

        def write() -> None:
            problem = ""
            try:
                recording.write(folder, self.fps)
            except (OSError, ValueError) as error:  # a full disk, for one
                problem = f"recording {number + 1} could not be written ({error})"
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._written, guest, number, folder, problem)

        self._writer.submit(write)
        return f"recording {number + 1} is being written"

    def _written(self, guest: Guest, number: int, folder: Path, problem: str) -> None:
        guest.is_writing = False
        if guest.token not in self.guests:  # it was begun after they left
            self._writer.submit(_remove, folder.parent)
            return
        if problem:
            self._writer.submit(_remove, folder)
            if guest.game is not None:
                guest.game.message = problem
            return
        guest.recordings[number] = folder
        for old in sorted(guest.recordings)[:-KEPT_RECORDINGS]:
            self._writer.submit(_remove, guest.recordings.pop(old))
        if guest.connection is not None:
            links = [f"/recordings/{guest.token}/{number}/{name}" for name in FILES]
            guest.connection.tell({"type": "recording", "number": number + 1, "files": links})


def _actions(game: Game) -> list[dict[str, Any]]:
    """The actions that have a button on the page, of those that have a digit: what each is called,
    and its motion, x and y: 0 where it moves nothing, and None where it is not known."""
    spec, buttons = game.player.action_spec, game.buttons
    if spec.kind != "discrete" or spec.factors:
        return []
    if buttons is None:
        return [{"label": name, "motion": None} for name in spec.names[:9]]
    return [
        {"label": buttons.describe(code), "motion": list(motion) if moves(motion) else [0.0, 0.0]}
        for code, motion in enumerate(buttons.motion[:9])
    ]


def _pause(guest: Guest, problem: ValueError) -> None:
    if guest.game is not None:
        guest.game.message, guest.game.paused = str(problem), True


def _choose(guest: Guest, may_take_long: bool) -> Any:
    guest.take_inputs(may_take_long)
    assert guest.game is not None
    return guest.game.choose()


def _after_step(guest: Guest) -> None:
    assert guest.game is not None
    guest.game.after_step()


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
