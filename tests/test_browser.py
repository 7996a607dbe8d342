"""The page's server: who may connect, what is sent, many players, and those who leave.

One file because all of it needs the same room, and the same page in it.
"""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image
from pointer_world import PointerWorld, ToTheRight, blue_at
from square_world import MOVES, square_world, write_squares

pytest.importorskip("fastapi", reason="requirements-serve.txt is not installed")
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

import play
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from pipeline.play.browser import app, serve
from pipeline.play.browser.app import TYPES, make_app
from pipeline.play.browser.guest import Guest
from pipeline.play.browser.messages import HEADER, MAX_BYTES, Key, parse
from pipeline.play.browser.room import Room
from pipeline.play.browser.server_config import ServerConfig
from pipeline.play.buttons import Buttons
from pipeline.play.game import Game
from pipeline.play.player import Player, StartSampler
from pipeline.play.recording import Recording
from pipeline.play.simulators import open_simulator

FPS = 100.0
PATIENCE = 20.0  # seconds until something that has to come is missed
ORIGIN = {"origin": "http://127.0.0.1"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "shards"
    write_toy_shards(folder, episodes=12)
    return folder


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


@pytest.fixture
def make_house(shards: Path, tmp_path: Path) -> Iterator[Callable[..., House]]:
    made: list[House] = []

    def make(**config: Any) -> House:
        house = House(shards, tmp_path / "recordings", ServerConfig(**config))
        house.client.__enter__()
        made.append(house)
        return house

    yield make
    for house in made:
        house.client.__exit__(None, None, None)


# -- one player --------------------------------------------------------------------------------


def test_the_pointer_leads_and_frames_echo_the_time_of_the_input(make_house: Any):
    with make_house().visit() as visitor:
        welcome = visitor.hear("welcome")
        assert welcome["size"] == [32, 32] and welcome["pointer"] and welcome["simulator"]
        assert visitor.settle(0.8, 0.3, at=1000.5).shape == (32, 32, 3)
        visitor.settle(0.2, 0.7, at=2000.25)


def test_arrow_keys_lead_too(make_house: Any):
    house = make_house()
    with house.visit() as visitor:
        visitor.hear("welcome")
        visitor.settle(0.5, 0.5, at=1)
        before = house.guest(visitor).game.action_input.action.copy()
        for _ in range(5):
            visitor.key("right")
        house.until(lambda: house.guest(visitor).game.action_input.action[0] > before[0] + 100)


def test_at_most_two_frames_are_under_way_and_the_newest_comes_next(make_house: Any):
    house = make_house()
    with house.visit() as visitor:
        visitor.hear("welcome")
        guest = house.guest(visitor)
        visitor.send(t="pointer", x=0.9, y=0.9, at=1)
        first, second = (visitor.see(acknowledge=False)[0] for _ in range(2))
        house.until(lambda: guest.dropped > 5)
        assert guest.sent == second == first + 1
        visitor.send(t="pointer", x=0.1, y=0.1, at=77)
        dropped = guest.dropped
        house.until(lambda: guest.dropped > dropped + 30 or guest.player.steps > 60)
        visitor.send(t="ack", n=second)
        _, echoed, image = visitor.see()
        assert echoed == 77 and blue_at(image)[0] < 0.3


def test_a_pause_sends_nothing_and_a_step_one_frame(make_house: Any):
    house = make_house()
    with house.visit() as visitor:
        visitor.hear("welcome")
        guest = house.guest(visitor)
        visitor.key("p")
        while not visitor.hear("status")["paused"]:
            pass
        while visitor.seen < guest.sent:  # what was under way
            visitor.see()
        house.until(lambda: guest.acked == guest.sent)
        sent, steps = guest.sent, guest.player.steps
        time.sleep(10 / FPS)
        assert (guest.sent, guest.player.steps) == (sent, steps)
        visitor.key("n")
        house.until(lambda: guest.player.steps == steps + 1)


def test_z_goes_back_while_it_is_held_and_a_lost_focus_lets_go(make_house: Any):
    house = make_house()
    with house.visit() as visitor:
        visitor.hear("welcome")
        guest = house.guest(visitor)
        house.until(lambda: guest.player.steps > 20)
        visitor.send(t="key", key="z", down=True, at=1)
        house.until(lambda: guest.player.steps == 0)
        assert guest.game.rewinding
        visitor.send(t="blur")
        house.until(lambda: guest.player.steps > 3)


def test_the_simulator_is_shown_beside(make_house: Any):
    with make_house().visit() as visitor:
        visitor.hear("welcome")
        visitor.key("b")
        for _ in range(200):
            if visitor.see()[2].shape == (32, 64, 3):
                break
        else:
            raise AssertionError("one panel")
        assert len(visitor.hear("status")["panels"]) == 2


def test_a_recording_can_be_downloaded_by_who_made_it(make_house: Any):
    house = make_house()
    with house.visit() as visitor:
        visitor.hear("welcome")
        visitor.key("v")
        house.until(lambda: house.guest(visitor).game.recording is not None)
        house.until(lambda: len(house.guest(visitor).game.recording.frames) > 5)
        visitor.key("v")
        files = visitor.hear("recording")["files"]
        gif, mp4, actions = (house.client.get(file) for file in files)
        assert [r.status_code for r in (gif, mp4, actions)] == [200] * 3
        frames = imageio.imread(gif.content, extension=".gif")
        assert len(frames) == len(np.load(io.BytesIO(actions.content))) + 1 > 5
        assert mp4.content[4:8] == b"ftyp"
        token = visitor.session
        for wrong in (f"/recordings/{token}/0/..%2f..%2fx", f"/recordings/{token}/9/rollout.gif",
                      f"/recordings/{token[:-1]}/0/rollout.gif"):  # fmt: skip
            assert house.client.get(wrong).status_code == 404


@pytest.fixture
def slow_writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Recordings are written once it is set."""
    may_write, write = threading.Event(), Recording.write

    def wait(recording: Recording, folder: Path, fps: float) -> None:
        may_write.wait(PATIENCE)
        write(recording, folder, fps)

    monkeypatch.setattr(Recording, "write", wait)
    yield may_write
    may_write.set()


def record(house: House, visitor: Visitor, frames: int) -> None:
    visitor.key("v")
    game = house.guest(visitor).game
    house.until(lambda: game.recording is not None and len(game.recording.frames) >= frames)
    visitor.key("v")
    house.until(lambda: game.recording is None)


def test_one_recording_is_written_at_a_time_and_none_over_another(make_house: Any, slow_writer):
    house = make_house()
    with house.visit() as visitor:
        visitor.hear("welcome")
        guest = house.guest(visitor)
        record(house, visitor, frames=12)
        for _ in range(3):
            record(house, visitor, frames=1)
            assert "is not kept" in guest.game.message
        assert house.room._writer._work_queue.qsize() == 0  # nothing waits in memory
        slow_writer.set()
        first = visitor.hear("recording")
        record(house, visitor, frames=1)
        second = visitor.hear("recording")
        assert (first["number"], second["number"]) == (1, 2) and first["files"] != second["files"]
        actions = house.client.get(first["files"][2]).content
        assert len(np.load(io.BytesIO(actions))) >= 11


def test_a_number_is_not_given_again_after_a_recording_that_could_not_be_written(
    make_house: Any, monkeypatch: pytest.MonkeyPatch
):
    house, write = make_house(), Recording.write
    with house.visit() as visitor:
        visitor.hear("welcome")

        def full(recording: Recording, folder: Path, fps: float) -> None:
            write(recording, folder, fps)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Recording, "write", full)
        record(house, visitor, frames=1)
        while "No space left" not in visitor.hear("status")["message"]:
            pass
        monkeypatch.setattr(Recording, "write", write)
        record(house, visitor, frames=1)
        assert visitor.hear("recording")["number"] == 2
        folder = house.room.folder / visitor.session
        house.until(lambda: [f.name for f in folder.iterdir()] == ["recording-001"])


def test_what_is_being_written_when_its_guest_leaves_is_removed(make_house: Any, slow_writer):
    house = make_house()
    with house.visit() as visitor:
        visitor.hear("welcome")
        guest = house.guest(visitor)
        record(house, visitor, frames=1)
        house.room.leave(guest)
        slow_writer.set()
        house.until(lambda: not guest.is_writing)
        folder = house.room.folder / visitor.session
        house.until(lambda: not folder.exists() and house.room._writer._work_queue.empty())


# -- keys that take long, and buttons ----------------------------------------------------------


def a_guest(shards: Path, folder: Path) -> Guest:
    guest = Guest()
    make_game: Any = House(shards, folder, ServerConfig()).room.make_game
    guest.game = make_game(folder, None, 0)
    return guest


def give(guest: Guest, *keys: str) -> None:
    for key in keys:
        for down in (True, False):
            guest.receive(Key(t="key", key=key, down=down, at=1.0))


def test_many_resets_are_one_and_other_keys_that_take_long_one_a_step(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    guest = a_guest(shards, tmp_path)
    done: list[str] = []
    monkeypatch.setattr(guest.game, "reset", lambda: done.append("r"))
    monkeypatch.setattr(guest.game, "_freeze_goal", lambda: done.append("g"))
    give(guest, *["r"] * 100)
    guest.take_inputs()
    assert done == ["r"] and not guest.inbox
    give(guest, "g", "p", "r", "g", "g")
    for expected in ("g", "r", "g", "g", ""):
        done.clear()
        guest.take_inputs()
        assert done == list(expected)
    assert guest.game is not None and guest.game.paused  # what takes no time does not wait


def test_buttons_of_latent_actions_have_their_names_and_arrows(tmp_path: Path):
    dataset, world = write_squares(tmp_path / "shards"), square_world()
    starts = StartSampler(dataset, "test", world.context, 0, world)
    motion = ((-0.1, 0.05), (0.0, 1e-4), *[(0.1, 0.0)] * 7)
    buttons = Buttons("x", ("left", *[""] * 8), motion, (1.0,) * 9, 1)

    def game(player: Player, buttons: Buttons | None) -> Guest:
        guest = Guest()
        guest.game = Game(player, starts, starts.at(0), tmp_path, 32, FPS, buttons=buttons)
        return guest

    room = Room(cast(Any, None), ServerConfig(), FPS, tmp_path)
    guest = game(Player(world), buttons)
    welcome = room.welcome(guest)
    assert welcome["actions"][:2] == [
        {"label": "1 left", "motion": [-0.1, 0.05]}, {"label": "2", "motion": [0.0, 0.0]},
    ]  # fmt: skip
    assert len(welcome["actions"]) == 9 and welcome["keys"][0].startswith("1 left  2  3")
    give(guest, "1")
    guest.take_inputs()
    status = guest.next_status({})
    assert status is not None and status["action"] == "1 left"
    true_actions: Any = type("Map", (), {"true": MOVES})()
    named = room.welcome(game(Player(world, action_map=true_actions), None))["actions"]
    assert named[0] == {"label": "stay", "motion": None}  # the data's own, as they are taken
    room.close()


# -- many players ------------------------------------------------------------------------------


def test_two_players_are_stepped_at_once_and_each_sees_their_own(make_house: Any):
    house = make_house()
    batches: list[int] = []
    step = house.world.step

    def counted(state: Any, action: Any) -> Any:
        batches.append(len(action))
        return step(state, action)

    house.world.step = counted
    with house.visit() as one, house.visit() as other:
        for visitor in (one, other):
            visitor.hear("welcome")
        one.settle(0.9, 0.5, at=1)
        other.settle(0.1, 0.5, at=1)
        house.until(lambda: batches[-20:] == [2] * 20)
        assert blue_at(one.see()[2])[0] > 0.8 and blue_at(other.see()[2])[0] < 0.2


def test_a_full_house_has_a_line_and_a_full_line_is_told(make_house: Any):
    house = make_house(max_players=1, max_waiting=1)
    with house.visit() as first:
        first.hear("welcome")
        with house.visit() as second:
            assert second.hear("line") == {"type": "line", "place": 1, "of": 1}
            with house.visit() as third, pytest.raises(WebSocketDisconnect) as refused:
                third.hear("welcome")
            assert refused.value.code == 1013
            house.room.leave(house.guest(first))
            assert second.hear("welcome")["fps"] == FPS


def test_who_leaves_the_line_makes_the_others_move_up(make_house: Any):
    house = make_house(max_players=1, max_waiting=2)
    with house.visit() as first:
        first.hear("welcome")
        with house.visit() as second:
            second.hear("line")
            with house.visit() as third:
                assert third.hear("line")["place"] == 2
                second.socket.close()
                assert third.hear("line")["place"] == 1


def test_a_lost_connection_finds_its_game_again(make_house: Any):
    house = make_house()
    with house.visit() as visitor:
        visitor.hear("welcome")
        visitor.settle(0.7, 0.7, at=5)
        guest = house.guest(visitor)
    house.until(lambda: guest.connection is None)
    steps = guest.player.steps
    time.sleep(10 / FPS)
    assert guest.player.steps == steps  # nobody is there
    with house.visit(session=visitor.session) as again:
        assert again.hear("welcome")["session"] == visitor.session
        assert again.see()[0] == 1  # the page knows no frame
        house.until(lambda: guest.player.steps > steps)
    with house.visit(session="of-nobody") as other:
        assert other.hear("welcome")["session"] != visitor.session


def test_who_does_not_come_back_gives_up_the_place(make_house: Any):
    house = make_house(reconnect_seconds=0.05)
    with house.visit() as visitor:
        visitor.hear("welcome")
    house.until(lambda: not house.room.guests)


def test_who_does_nothing_gives_up_the_place(make_house: Any):
    house = make_house(idle_minutes=0.01)
    with house.visit() as visitor, pytest.raises(WebSocketDisconnect) as left:
        visitor.hear("welcome")
        while True:
            visitor.see()  # to look on is not to play
    assert left.value.code == 4001 and "0.01 minutes" in left.value.reason
    house.until(lambda: not house.room.guests)


def test_a_second_window_takes_the_game_over(make_house: Any):
    house = make_house()
    with house.visit() as visitor:
        visitor.hear("welcome")
        with house.visit(session=visitor.session) as again:
            again.hear("welcome")
            with pytest.raises(WebSocketDisconnect) as ended:
                while True:
                    visitor.see()
            assert ended.value.code == 4002
            again.settle(0.3, 0.3, at=9)


def test_a_game_that_refuses_says_why_and_the_others_play_on(make_house: Any):
    house = make_house()
    with house.visit() as one, house.visit() as other:
        for visitor in (one, other):
            visitor.hear("welcome")
        house.guest(one).game.reset = refuse
        one.key("r")
        while "no seed" not in (status := one.hear("status"))["message"]:
            pass
        assert status["paused"]
        other.settle(0.2, 0.2, at=3)


def refuse(*_: Any) -> Any:
    raise ValueError("this episode has no seed")


@pytest.mark.parametrize("recording", [False, True])
def test_a_simulator_that_refuses_is_not_shown_and_all_play_on(make_house: Any, recording: bool):
    house = make_house()
    with house.visit() as one, house.visit() as other:
        for visitor in (one, other):
            visitor.hear("welcome")
        guest = house.guest(one)
        guest.player.simulator.reset = refuse
        if recording:
            one.key("v")
            house.until(lambda: guest.game.recording is not None)
        one.send(t="key", key="b", down=True, at=1)
        while "no seed" not in (status := one.hear("status"))["message"]:
            pass
        assert len(status["panels"]) == 1 and not status["paused"]
        steps = guest.player.steps
        house.until(lambda: guest.player.steps > steps + 3)
        if recording:
            one.key("v")
            files = one.hear("recording")["files"]
            frames = list((guest.recordings[0] / "frames").iterdir())  # a GIF joins equal ones
            actions = np.load(io.BytesIO(house.client.get(files[2]).content))
            assert len(frames) == len(actions) + 1
        other.settle(0.2, 0.2, at=3)


@pytest.mark.parametrize("part", ["world_action", "arrive"])
def test_a_step_that_refuses_pauses_its_game_alone(make_house: Any, part: str):
    house = make_house()
    with house.visit() as one, house.visit() as other:
        for visitor in (one, other):
            visitor.hear("welcome")
        setattr(house.guest(one).player, part, refuse)
        while "no seed" not in (status := one.hear("status"))["message"]:
            pass
        assert status["paused"]
        other.settle(0.2, 0.2, at=3)


def test_a_game_that_cannot_begin_is_told_and_the_next_one_begins(make_house: Any):
    house = make_house()
    make_game = house.room.make_game
    house.room.make_game = refuse
    with house.visit() as visitor, pytest.raises(WebSocketDisconnect) as ended:
        visitor.hear("welcome")
    assert ended.value.code == 4003 and "no seed" in ended.value.reason
    house.room.make_game = make_game
    with house.visit() as visitor:
        visitor.hear("welcome")


def test_a_fault_of_ours_ends_the_server(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told: list[bool] = []
    house = House(shards, tmp_path, ServerConfig())
    other = TestClient(make_app(house.room, lambda: told.append(True)), base_url="http://127.0.0.1")
    monkeypatch.setattr(house.room, "dismiss", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), other:
        house.until(lambda: bool(told))


# -- who may connect, and what they may say ----------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "http://127.0.0.1:9"}, {},
     {"origin": "http://["}, {"origin": "http://127.0.0.1", "host": "[x"},
     {"origin": "http://evil.example", "host": "evil.example"}],
)  # fmt: skip
def test_a_page_of_another_server_may_not_connect(make_house: Any, headers: dict[str, str]):
    with pytest.raises(WebSocketDisconnect) as refused, make_house().visit(headers=headers):
        pass
    assert refused.value.code == 1008


def test_a_name_that_is_not_this_machines_is_refused(make_house: Any):
    client = make_house().client
    assert client.get("/").status_code == 200
    for host in ("evil.example", "[x", ""):
        assert client.get("/", headers={"host": host}).status_code == 421


def test_without_the_key_nobody_plays_and_with_it_from_anywhere(make_house: Any):
    house = make_house(host="0.0.0.0", key="a secret of some length")
    for key in ("", "a secret of some lengtH", "ä"):
        with house.visit(key=key) as visitor, pytest.raises(WebSocketDisconnect) as refused:
            visitor.hear("welcome")
        assert refused.value.code == 1008 and "key" in refused.value.reason
    far = {"origin": "http://192.0.2.7:8765", "host": "192.0.2.7:8765"}
    with house.visit(key="a secret of some length", headers=far) as visitor:
        visitor.hear("welcome")


def test_another_address_needs_a_key_and_a_short_one_is_none():
    for host in ("0.0.0.0", "192.0.2.7", "::"):
        with pytest.raises(ValueError, match="--key is needed"):
            ServerConfig(host=host)
    with pytest.raises(ValueError, match="16 is the least"):
        ServerConfig(key="short")
    ServerConfig(host="0.0.0.0", key="k" * 16)


@pytest.mark.parametrize(
    "text",
    ["", "x", "[]", "{}", '{"t":"other"}', '{"t":"pointer","x":NaN,"y":0,"at":1}',
     '{"t":"pointer","x":1e999,"y":0,"at":1}', '{"t":"pointer","x":"0","y":0,"at":1,"z":1}',
     '{"t":"key","key":"../..","down":true,"at":1}', '{"t":"ack","n":-1}', '{"t":"ack","n":1.5}',
     '{"t":"key","key":"w","down":true,"at":-1}', '{"t":"blur","more":1}',
     '{"t":"hello","v":2}', "[" * 3000],
)  # fmt: skip
def test_what_the_page_would_not_send_is_no_message(text: str):
    with pytest.raises(ValueError) as refused:
        parse(text)
    assert "\n" not in str(refused.value) and len(str(refused.value)) <= 120


@pytest.mark.parametrize("text", ["nonsense", '{"t":"hello","v":1}', "x" * (MAX_BYTES + 1)])
def test_who_sends_nonsense_is_shown_out_and_can_come_back(make_house: Any, text: str):
    house = make_house()
    with house.visit() as visitor:
        visitor.hear("welcome")
        visitor.socket.send_text(text)
        with pytest.raises(WebSocketDisconnect) as ended:
            while True:
                visitor.see(acknowledge=False)
    assert ended.value.code == 1008
    with house.visit(session=visitor.session) as again:
        again.hear("welcome")


def test_a_flood_is_shown_out(make_house: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "MESSAGES_PER_SECOND", 4)  # a slow machine sends no more
    with make_house().visit() as visitor:
        visitor.hear("welcome")
        for _ in range(40):
            visitor.send(t="blur")
        with pytest.raises(WebSocketDisconnect) as ended:
            while True:
                visitor.see(acknowledge=False)
    assert ended.value.code == 1008 and "more than 4 messages" in ended.value.reason


def test_the_first_message_must_be_hello(make_house: Any):
    with make_house().client.websocket_connect("ws://127.0.0.1/play", headers=ORIGIN) as socket:
        socket.send_text('{"t":"blur"}')
        assert socket.receive()["code"] == 1008


# -- the files, and the command ----------------------------------------------------------------


def test_the_page_is_whole_and_asks_no_other_server(make_house: Any):
    client = make_house().client
    for name in TYPES:
        answer = client.get(f"/{name}")
        assert answer.status_code == 200 and "default-src 'self'" in answer.headers[
            "content-security-policy"
        ]  # fmt: skip
        assert "http://" not in answer.text and "https://" not in answer.text
    assert client.get("/").text == client.get("/index.html").text
    for wrong in ("/app.py", "/..%2fapp.py", "/recordings/x/0/rollout.gif"):
        assert client.get(wrong).status_code == 404


def test_a_port_in_use_and_a_missing_package_are_told_in_one_line(monkeypatch: Any):
    with serve.open_socket(ServerConfig(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--server.port {port} cannot be served at"):
            serve.open_socket(ServerConfig(port=port))
        address = serve.address(ServerConfig(key="k&" * 8), taken)
        assert address == f"http://127.0.0.1:{port}/#key=" + "k%26" * 8
    monkeypatch.setattr(serve, "PACKAGES", ("fastapi", "not_here_at_all"))
    with pytest.raises(ValueError, match=r"needs not_here_at_all; .*requirements-serve.txt"):
        serve.check_installed()


@pytest.mark.parametrize("other", ["headless", "cuda_graph"])
def test_a_page_goes_with_no_film_and_no_graph_of_one_player(tmp_path: Path, other: str):
    config = replace(play.Config(run=tmp_path, browser=True), **{other: True})
    with pytest.raises(ValueError, match="--browser"):
        play.main(config)


def test_frames_do_not_wait_for_nagle():
    with serve.open_socket(ServerConfig(port=0)) as listening:
        assert listening.proto == socket.IPPROTO_TCP  # what asyncio looks at
