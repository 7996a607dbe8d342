"""The page in a real Chromium: mouse, touch, keys, a lost server, two windows, the way back.

One file because all of it needs the same browser, and the same server.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_server import Server, goes_to, plays, point, serving
from chromium import playwright_or_skip, said, until
from square_world import square_world, write_squares
from untrained_run import write_run

from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from pipeline.play.buttons import Buttons

pytest.importorskip("fastapi", reason="requirements-serve.txt is not installed")
playwright_or_skip()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    write_toy_shards(run / "shards", episodes=12)
    return write_run(run, EpisodeDataset(run / "shards"))


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    with serving(run) as address:
        yield address


def test_the_mouse_leads_and_the_round_trip_is_shown(address: str, visit: Any):
    page = visit(address)
    plays(page)
    point(page, 0.8, 0.3)
    goes_to(page, 0.8, 0.3)
    point(page, 0.3, 0.8)
    goes_to(page, 0.3, 0.8)
    assert page.evaluate("measured.roundTrips.length") >= 2
    until(page, lambda: "round trip -" not in page.inner_text("#hud"))


def test_a_finger_leads(address: str, visit: Any):
    page = visit(address, has_touch=True)
    plays(page)
    box = page.locator("#world").bounding_box()
    page.touchscreen.tap(box["x"] + 0.7 * box["width"], box["y"] + 0.2 * box["height"])
    goes_to(page, 0.7, 0.2)


def test_everything_can_be_done_with_keys_alone(address: str, visit: Any):
    page = visit(address)
    plays(page)
    assert page.evaluate("document.activeElement.id") == "world"
    for _ in range(30):
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
    goes_to(page, 1.0, 1.0)
    page.keyboard.press("p")
    said(page, "Paused")
    page.keyboard.press("Tab")  # the image is no trap
    reached = set()
    for _ in range(12):
        reached.add(page.evaluate("document.activeElement.textContent.trim().split('\\n')[0]"))
        page.keyboard.press("Tab")
    assert {"Pause P", "Hold to go back Z", "Record V", "Keys"} <= reached
    page.locator("#pause").focus()
    page.keyboard.press("Enter")
    until(page, lambda: "Paused" not in page.inner_text("#said"))
    plays(page)


def test_z_goes_back_until_it_is_released(address: str, visit: Any):
    page = visit(address)
    plays(page)
    page.keyboard.down("z")
    said(page, "Going back")
    until(page, lambda: "step 0 " in page.inner_text("#hud"))
    page.keyboard.up("z")
    until(page, lambda: "Going back" not in page.inner_text("#said"))
    plays(page)


def test_a_lost_focus_lets_go_of_all_keys(address: str, visit: Any):
    page = visit(address)
    plays(page)
    page.keyboard.down("z")
    said(page, "Going back")
    page.evaluate("window.dispatchEvent(new Event('blur'))")
    until(page, lambda: "Going back" not in page.inner_text("#said"))


def test_the_simulator_and_the_controller_are_a_button_each(address: str, visit: Any):
    page = visit(address)
    plays(page)
    page.click("#simulator")
    until(page, lambda: page.evaluate("document.getElementById('world').width") == 512 * 2 + 4)
    assert page.inner_text("#captions").split("\n") == ["world model", "simulator, same actions"]
    box = page.locator("#world").bounding_box()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.5 * box["height"])
    goes_to(page, 0.5, 0.5)
    goes_to(page, 0.5, 0.5, panel=1)
    page.click("#controller")
    said(page, "The controller acts")
    assert page.get_attribute("#controller", "aria-pressed") == "true"
    goes_to(page, 1.0, 0.0)


def test_buttons_of_latent_actions_say_and_draw_what_they_do(visit: Any, tmp_path: Path):
    write_squares(tmp_path / "shards")
    motion = ((-0.1, 0.0), (0.0, 0.0), *[(0.04, 0.05)] * 7)
    buttons = Buttons("x", ("back", *[""] * 8), motion, (1.0,) * 9, 1)
    with serving(tmp_path, square_world(), find_buttons=lambda *_: buttons) as address:
        page = visit(address)
        shown = page.get_by_role("group", name="Actions").get_by_role("button")
        until(page, lambda: shown.count() == 9)
        for number, label in enumerate(("1 back, moves left", "2, moves nothing",
                                        "3, moves down right")):  # fmt: skip
            assert shown.nth(number).get_attribute("aria-label") == label
        arrows = [shown.nth(n).locator("span").evaluate("e => [e.textContent, e.style.transform]")
                  for n in range(3)]  # fmt: skip
        assert [sign for sign, _ in arrows] == ["\u2192", "\u00b7", "\u2192"]
        assert arrows[0][1].startswith("rotate(3.14159rad) scale(1.3)")
        shown.nth(0).click()
        until(page, lambda: shown.nth(0).get_attribute("aria-pressed") == "true")
        until(page, lambda: "1 back" in page.locator("#hud").inner_text())
        assert shown.nth(1).get_attribute("aria-pressed") == "false"


def test_a_recording_is_offered_for_download(address: str, visit: Any):
    page = visit(address)
    plays(page)
    page.click("#record")
    until(page, lambda: "REC" in page.inner_text("#hud"))
    page.click("#record")
    until(page, lambda: page.locator("#recordings a").count() == 3)
    with page.expect_download() as download:
        page.click("#recordings a >> nth=0")
    assert Path(download.value.path()).read_bytes()[:4] == b"GIF8"


def test_two_people_play_each_their_own_game(address: str, visit: Any):
    one, other = visit(address), visit(address)
    plays(one)
    plays(other)
    point(one, 0.9, 0.5)
    point(other, 0.1, 0.5)
    goes_to(one, 0.9, 0.5)
    goes_to(other, 0.1, 0.5)


def test_a_page_that_is_loaded_again_goes_on_with_its_game(address: str, visit: Any):
    page = visit(address)
    plays(page)
    session = page.evaluate("sessionStorage.getItem('session')")
    page.goto("about:blank")
    page.go_back()
    plays(page)
    assert page.evaluate("sessionStorage.getItem('session')") == session


def test_no_network_is_told_and_mended(address: str, visit: Any):
    page = visit(address)
    plays(page)
    page.context.set_offline(True)
    until(page, lambda: "no network" in page.inner_text("#connection"))
    page.context.set_offline(False)
    until(page, lambda: page.inner_text("#connection") == "Connected")
    plays(page)


def test_a_small_window_shows_the_whole_image(address: str, visit: Any):
    page = visit(address)
    plays(page)
    page.set_viewport_size({"width": 320, "height": 640})
    box = page.locator("#world").bounding_box()
    assert box["width"] <= 320 and abs(box["width"] / box["height"] - 1) < 0.02
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    point(page, 0.6, 0.4)
    goes_to(page, 0.6, 0.4)


def test_a_server_that_was_killed_is_found_again_and_a_full_house_has_a_line(run: Path, visit: Any):
    server = Server(run, "--server.max-players", "1")
    page = visit(server.url)
    plays(page)
    page.evaluate("Math.random = () => 0")  # tries again as soon as it may
    waiting = visit(server.url)
    until(waiting, lambda: "number 1 of 1 in line" in waiting.inner_text("#connection"))
    waiting.close()
    server.stop(signal.SIGKILL)
    until(page, lambda: "Trying again" in page.inner_text("#connection"))
    server.start()
    until(page, lambda: page.inner_text("#connection") == "Connected")
    plays(page)
    assert server.stop() == 0
