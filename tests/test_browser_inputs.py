"""Game pad, locked pointer, finger and pen on the page, in a Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from browser_server import BLUE, goes_to, plays, point, serving
from chromium import playwright_or_skip, said, until
from untrained_run import write_run

from data.actions import ActionSpec, Factor
from data.shards.build_shards import build
from data.shards.episode_dataset import EpisodeDataset
from data.shards.episodes import Episode
from data.toy import write_toy_shards

pytest.importorskip("fastapi", reason="requirements-serve.txt is not installed")
playwright_or_skip()

pytestmark = pytest.mark.slow
TURNS = (-10.0, -3.0, -1.0, 0.0, 1.0, 3.0, 10.0)
LOOK = ActionSpec(
    "discrete",
    (),
    factors=(
        Factor("yaw", tuple(f"{turn:+g}" for turn in TURNS), TURNS),
        Factor("move", ("none", "forward", "back")),
        Factor("attack", ("none", "attack")),
    ),
)
PIXELS_A_DEGREE = 3.0  # of the 512 of the world, by which the disc moves across
PAD = """
window.pad = { axes: [0, 0, 0, 0], buttons:
  Array.from({ length: 17 }, () => ({ pressed: false })) };
navigator.getGamepads = () => [null, window.pad];
"""
DRAG = """async ([kind, from, to]) => {
  const canvas = document.getElementById("world"), box = canvas.getBoundingClientRect();
  const send = (type, [x, y], buttons) => canvas.dispatchEvent(new PointerEvent(type, {
    pointerType: kind, pointerId: 7, isPrimary: true, bubbles: true, cancelable: true, buttons,
    button: type === "pointermove" ? -1 : 0,
    clientX: box.left + x * box.width, clientY: box.top + y * box.height,
  }));
  canvas.setPointerCapture = () => {}; // there is no such pointer
  send("pointerdown", from, 1);
  for (let step = 1; step <= 4; step++) {
    send("pointermove", from.map((start, axis) => start + (to[axis] - start) * step / 4), 1);
    await new Promise(requestAnimationFrame);
  }
  send("pointerup", to, 0);
}"""


def look_world() -> Any:
    import torch
    from pointer_world import PointerWorld

    from models.dynamics.dynamics import State

    class World(PointerWorld):
        """The disc shows how far the view has turned: across, from the middle."""

        def reset(self, frames: Any, actions: Any) -> State:
            middle = torch.full((len(frames), 2), 256)
            ones = torch.ones(len(frames))
            return State(middle, 0 * ones, ones, super().reset(frames, actions).memory)

        def step(self, state: State, action: Any) -> State:
            turned = torch.tensor(TURNS)[LOOK.unravel(action)[..., 0]] * PIXELS_A_DEGREE
            latents = state.latents.clone()
            latents[:, 0] = (latents[:, 0] + turned.round().long()).clamp(0, 512)
            return State(latents, state.reward, state.continues, state.memory)

    return World(LOOK)


@dataclass(frozen=True)
class Still:
    """Episodes in which nothing happens."""

    num_shards: int = 1
    num_sources: int = 6

    def description(self) -> dict[str, Any]:
        return {"source": "still", "image_size": [32, 32], "actions": LOOK.as_dict()}

    def make_shard(self, index: int) -> list[Episode]:
        frames, actions = np.zeros((24, 32, 32, 3), np.uint8), np.zeros(24, np.int64)
        return [Episode(frames, actions, source=number) for number in range(6)]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    run = tmp_path_factory.mktemp("run")
    write_toy_shards(run / "shards", episodes=12)
    with serving(write_run(run, EpisodeDataset(run / "shards"))) as address:
        yield address


@pytest.fixture(scope="module")
def look_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    run = tmp_path_factory.mktemp("look")
    build(Still(), run / "shards", "")
    with serving(run, look_world()) as address:
        yield address


def set_pad(page: Any, script: str) -> None:
    page.evaluate(f"() => {{ {script} }}")


def test_a_game_pad_steers_pauses_goes_back_and_lets_go_when_it_is_unplugged(
    address: str, visit: Any
):
    page = visit("about:blank")
    page.add_init_script(PAD)
    page.goto(address)
    plays(page)
    set_pad(page, "pad.axes[0] = 1; pad.axes[1] = -1;")
    goes_to(page, 1.0, 0.0)
    set_pad(page, "pad.axes[0] = -1; pad.axes[1] = 0.1;")  # 0.1 is rest
    goes_to(page, 0.0, 0.0)
    set_pad(page, "pad.axes[0] = 0; pad.buttons[9].pressed = true;")
    said(page, "Paused")
    set_pad(page, "pad.buttons[9].pressed = false;")
    page.wait_for_timeout(100)
    set_pad(page, "pad.buttons[9].pressed = true;")
    until(page, lambda: "Paused" not in page.inner_text("#said"))
    set_pad(page, "pad.buttons[9].pressed = false; pad.buttons[4].pressed = true;")
    said(page, "Going back")
    set_pad(page, "window.pad = null;")
    until(page, lambda: "Going back" not in page.inner_text("#said"))
    plays(page)


def degrees(page: Any) -> float | None:
    """How far the view has turned."""
    at = page.evaluate(BLUE, 0)
    return None if at is None else (at[0] - 0.5) * 512 / PIXELS_A_DEGREE


def turned(page: Any, expected: float) -> None:
    """Wait until the view has turned so far and rests."""

    def rests() -> bool:
        first = degrees(page)
        page.wait_for_timeout(200)
        second = degrees(page)
        return first is not None and first == second and abs(first - expected) < 4

    until(page, rests)


def test_a_locked_pointer_turns_the_view_by_its_motion_and_by_nothing_else(
    look_address: str, visit: Any
):
    page = visit(look_address)
    plays_once(page)
    box = page.locator("#world").bounding_box()
    point(page, 0.2, 0.5)
    point(page, 0.8, 0.5)  # not locked yet
    page.wait_for_timeout(300)
    turned(page, 0)
    page.mouse.down()
    page.mouse.up()
    until(page, lambda: page.evaluate("document.pointerLockElement === canvas"))
    x, y = box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"]
    for step in range(1, 9):
        page.mouse.move(x - step * box["width"] / 32, y)
    turned(page, -30)  # a quarter of the image, of which the whole is 120 degrees
    until(page, lambda: "attack" not in page.inner_text("#hud"))
    page.mouse.down()
    until(page, lambda: "attack" in page.inner_text("#hud"))
    page.mouse.up()
    page.evaluate("document.exitPointerLock()")
    until(page, lambda: page.evaluate("document.pointerLockElement === null"))
    point(page, 0.1, 0.9)
    page.wait_for_timeout(300)
    turned(page, -30)
    page.reload()
    until(page, lambda: page.inner_text("#connection") == "Connected")
    plays_once(page)
    turned(page, -30)


def plays_once(page: Any) -> None:
    """A frame is there: where nothing moves no other one comes."""
    until(page, lambda: page.evaluate("measured.frames") > 0)


@pytest.mark.parametrize("kind", ["touch", "pen"])
def test_a_finger_or_pen_turns_the_view_by_what_it_drags(look_address: str, visit: Any, kind: str):
    page = visit(look_address)
    plays_once(page)
    page.evaluate(DRAG, [kind, [0.2, 0.5], [0.35, 0.5]])
    turned(page, 18)
    page.evaluate(DRAG, [kind, [0.9, 0.5], [0.8, 0.5]])  # it begins elsewhere, without a jump
    turned(page, 6)


@pytest.mark.parametrize("kind", ["touch", "pen"])
def test_a_finger_or_pen_leads_the_target(address: str, visit: Any, kind: str):
    page = visit(address, has_touch=True)
    plays(page)
    page.evaluate(DRAG, [kind, [0.2, 0.5], [0.7, 0.8]])
    goes_to(page, 0.7, 0.8)


def test_a_pads_sticks_look_and_walk_where_the_pointer_is_locked(look_address: str, visit: Any):
    page = visit("about:blank")
    page.add_init_script(PAD)
    page.goto(look_address)
    plays_once(page)
    set_pad(page, "pad.axes[1] = -1;")
    until(page, lambda: "forward" in page.inner_text("#hud"))
    set_pad(page, "pad.axes[1] = 0; pad.buttons[7].pressed = true;")
    until(page, lambda: "attack" in page.inner_text("#hud"))
    assert "forward" not in page.inner_text("#hud")
    set_pad(page, "pad.buttons[7].pressed = false; pad.axes[2] = 1;")
    until(page, lambda: (degrees(page) or 0) > 10)
