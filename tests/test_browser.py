"""The page's server: many players, those who leave, who may connect, and what they may say."""

from __future__ import annotations

import io
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pointer_world import blue_at

pytest.importorskip("fastapi", reason="requirements-serve.txt is not installed")
from browser_house import FPS, ORIGIN, House, refuse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

import play
from pipeline.play.browser import app, serve
from pipeline.play.browser.app import TYPES, make_app
from pipeline.play.browser.guest import Guest
from pipeline.play.browser.messages import MAX_BYTES, Key, Pointer, parse
from pipeline.play.browser.room import COSTLY_A_STEP
from pipeline.play.browser.server_config import ServerConfig

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
            house.dismiss(house.guest(first))
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

    def stands_still() -> bool:
        steps = guest.player.steps
        time.sleep(10 / FPS)
        return guest.player.steps == steps

    house.until(stands_still)  # once the step that was under way is over: nobody is there
    steps = guest.player.steps
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
    house_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told: list[bool] = []
    house = House(house_shards, tmp_path, ServerConfig())
    other = TestClient(make_app(house.room, lambda: told.append(True)), base_url="http://127.0.0.1")
    monkeypatch.setattr(house.room, "dismiss", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), other:
        house.until(lambda: bool(told))


def test_keys_that_take_long_have_a_budget_and_all_take_turns(
    make_house: Any, monkeypatch: pytest.MonkeyPatch
):
    house = make_house(max_players=4)
    room = house.room
    done: list[int] = []

    def a_guest(number: int) -> Any:
        guest = Guest()
        guest.game = room.make_game(room.folder / str(number), None, 0)
        monkeypatch.setattr(guest.game, "_freeze_goal", lambda: done.append(number))
        guest.receive(Pointer(t="pointer", x=0.1 * number, y=0.5, at=1.0))
        for key in ["g"] * (9 if number == 0 else 2):
            guest.receive(Key(t="key", key=key, down=True, at=1.0))
        return guest

    guests = [a_guest(number) for number in range(4)]
    served = []
    for _ in range(8):
        before = len(done)
        room.tick(guests, {})
        served.append(set(done[before:]))
    assert all(len(turn) == COSTLY_A_STEP for turn in served[:4])
    assert served[0] | served[1] == {0, 1, 2, 3} == served[2] | served[3]
    assert served[4] == served[5] == {0}  # who asks for more has let all others go first
    assert all(guest.player.steps == 8 for guest in guests)


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
