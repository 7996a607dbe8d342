"""A game of the page: inputs, frames, recordings, keys that take long, and buttons."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import imageio.v3 as imageio
import numpy as np
import pytest
from pointer_world import blue_at
from square_world import MOVES, square_world, write_squares

pytest.importorskip("fastapi", reason="requirements-serve.txt is not installed")
from browser_house import FPS, PATIENCE, House, Visitor

from pipeline.play.browser.guest import Guest
from pipeline.play.browser.messages import Key
from pipeline.play.browser.room import Room
from pipeline.play.browser.server_config import ServerConfig
from pipeline.play.buttons import Buttons
from pipeline.play.game import Game
from pipeline.play.player import Player, StartSampler
from pipeline.play.recording import Recording

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
        steps = len(np.load(io.BytesIO(actions.content)))
        assert len(imageio.imread(mp4.content, extension=".mp4", plugin="pyav")) == steps + 1 > 5
        # frames that are alike follow as one in a GIF, shown longer
        assert 1 <= len(imageio.imread(gif.content, extension=".gif", index=None)) <= steps + 1
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
        house.dismiss(guest)
        slow_writer.set()
        house.until(lambda: not guest.is_writing)
        folder = house.room.folder / visitor.session
        house.until(lambda: not folder.exists() and house.room._writer._work_queue.empty())


# -- keys that take long, and buttons ----------------------------------------------------------


def a_guest(house_shards: Path, folder: Path) -> Guest:
    guest = Guest()
    make_game: Any = House(house_shards, folder, ServerConfig()).room.make_game
    guest.game = make_game(folder, None, 0)
    return guest


def give(guest: Guest, *keys: str) -> None:
    for key in keys:
        for down in (True, False):
            guest.receive(Key(t="key", key=key, down=down, at=1.0))


def test_many_resets_are_one_and_other_keys_that_take_long_one_a_step(
    house_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    guest = a_guest(house_shards, tmp_path)
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
