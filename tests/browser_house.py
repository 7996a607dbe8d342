"""A room of play.py --browser with visitors, in this process: for tests of its server."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from pointer_world import PointerWorld, ToTheRight, blue_at
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from data.shards.episode_dataset import EpisodeDataset
from pipeline.play.browser.app import make_app
from pipeline.play.browser.messages import HEADER
from pipeline.play.browser.room import Room
from pipeline.play.browser.server_config import ServerConfig
from pipeline.play.game import Game
from pipeline.play.player import Player, StartSampler
from pipeline.play.simulators import open_simulator

FPS = 100.0
PATIENCE = 120.0  # seconds until something that has to come is missed
ORIGIN = {"origin": "http://127.0.0.1"}


class House:
    """A room, and visitors of its page."""

    def __init__(self, shards: Path, folder: Path, config: ServerConfig) -> None:
        dataset = EpisodeDataset(shards)
        self.world = PointerWorld()
        starts = StartSampler(dataset, "test", self.world.context, seed=0)

        def make_game(folder: Path, save: Any, longest: int) -> Game:
            player = Player(cast(Any, self.world), cast(Any, ToTheRight()), open_simulator(dataset))
            return Game(player, starts, starts.at(0), folder, 32, FPS, save=save,
                        longest_recording=longest)  # fmt: skip

        self.room = Room(make_game, config, FPS, folder)
        self.client = TestClient(make_app(self.room), base_url="http://127.0.0.1")

    @contextmanager
    def visit(
        self, session: str = "", key: str = "", headers: dict[str, str] = ORIGIN
    ) -> Iterator[Visitor]:
        with self.client.websocket_connect("ws://127.0.0.1/play", headers=headers) as socket:
            visitor = Visitor(socket)
            visitor.send(t="hello", v=1, session=session, key=key)
            yield visitor

    def guest(self, visitor: Visitor) -> Any:
        return self.room.guests[visitor.session]

    def dismiss(self, guest: Any) -> None:
        """Let one go who did nothing for a day: between two steps, as the server does it."""
        guest.last_input = time.monotonic() - 24 * 60 * 60
        self.until(lambda: guest.token not in self.room.guests)

    def until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < end, "it never came"
            time.sleep(0.005)


class Visitor:
    """What the page does, without a page."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.session = ""
        self.seen = 0
        """Number of the last frame that came."""

    def send(self, **message: Any) -> None:
        self.socket.send_json(message)

    def hear(self, kind: str) -> dict[str, Any]:
        """The next words of a kind; frames before them are acknowledged."""
        for _ in range(2000):
            message = self.socket.receive()
            if "bytes" in message and message["bytes"] is not None:
                self.seen = HEADER.unpack_from(message["bytes"])[3]
                self.send(t="ack", n=self.seen)
            elif message["type"] == "websocket.close":
                raise WebSocketDisconnect(message["code"], message.get("reason"))
            else:
                words = json.loads(message["text"])
                self.session = words.get("session", self.session)
                if words["type"] == kind:
                    return words
        raise AssertionError(f"no {kind}")

    def see(self, acknowledge: bool = True) -> tuple[int, float, np.ndarray]:
        """The number of the next frame, the time that it echoes, and its image."""
        while True:
            message = self.socket.receive()
            if message["type"] == "websocket.close":
                raise WebSocketDisconnect(message["code"], message.get("reason"))
            if message.get("bytes") is not None:
                break
        version, kind, _, number, at = HEADER.unpack_from(message["bytes"])
        assert (version, kind) == (1, 1)
        self.seen = number
        image = Image.open(io.BytesIO(message["bytes"][HEADER.size :]), formats=["JPEG"])
        if acknowledge:
            self.send(t="ack", n=number)
        return number, at, np.asarray(image.convert("RGB"))

    def key(self, key: str, at: float = 1.0) -> None:
        self.send(t="key", key=key, down=True, at=at)
        self.send(t="key", key=key, down=False, at=at)

    def settle(self, x: float, y: float, at: float) -> np.ndarray:
        """Point somewhere, and wait until the disc is there."""
        self.send(t="pointer", x=x, y=y, at=at)
        for _ in range(400):
            _, echoed, image = self.see()
            if echoed == at and np.hypot(*(np.array(blue_at(image)) - (x, y))) < 0.08:
                return image
        raise AssertionError("the disc never came")


@contextmanager
def houses(shards: Path, folder: Path) -> Iterator[Callable[..., House]]:
    """Give a function that opens a house, by settings of its server."""
    with ExitStack() as open_ones:

        def make(**config: Any) -> House:
            house = House(shards, folder / "recordings", ServerConfig(**config))
            open_ones.enter_context(house.client)
            return house

        yield make


def refuse(*_: Any) -> Any:
    raise ValueError("this episode has no seed")
