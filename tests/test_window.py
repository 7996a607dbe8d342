"""The real window, driven by real keys and a real mouse, on a display that no one sees.

One file because all of it needs the same display, and the same person at it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pygame
import pytest
from PIL import ImageGrab
from pointer_world import blue_at
from untrained_run import write_run
from walk_world import SPEC, write_walks

from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from data.vpt.vpt_actions import MOVES
from pipeline.play import window
from pipeline.play.keyboard import DEGREES_PER_WIDTH
from pipeline.play.panels import (
    CAPTION_HEIGHT,
    GAP,
    Panel,
    add_text,
    compose_panels,
    panel_position,
    text_width,
)
from pipeline.play.window import check_display, key_name

TESTS = Path(__file__).parent
SIZE = 256
PLAY = """
import sys; sys.path[:0] = {paths!r}
import play
from pipeline.cli import run_cli
from pointer_world import PointerWorld, ToTheRight
play.load_world = lambda run, int8: PointerWorld()
play.load_controller = lambda run, world: ToTheRight()
play.main.__module__ = "play"
run_cli(play.main, play.Config, "play")
"""


WALK = PLAY.replace("pointer_world", "walk_world").replace("PointerWorld, ToTheRight", "WalkWorld")
WALK = WALK.replace("PointerWorld()", "WalkWorld()")


def play_command(*flags: str, script: str = PLAY) -> list[str]:
    return [sys.executable, "-c", script.format(paths=[str(TESTS.parent), str(TESTS)]), *flags]


# -- without a display -----------------------------------------------------------------------------


def test_keys_are_named_by_their_place_on_every_layout():
    w, q, m = pygame.KSCAN_W, pygame.KSCAN_Q, pygame.KSCAN_M
    for typed in ("w", "W", "z", "ц", "", "\x17"):  # QWERTY, AZERTY, Russian; coming up; Control
        assert key_name(w, typed) == "w"
    assert key_name(q, "a") == "q" and key_name(m, ",") == "m"
    assert [key_name(c) for c in (pygame.KSCAN_LEFT, pygame.KSCAN_UP)] == ["left", "up"]
    assert key_name(pygame.KSCAN_1, "&") == key_name(pygame.KSCAN_KP1, "1") == "1"
    assert key_name(pygame.KSCAN_SPACE, " ") == "space"
    assert key_name(pygame.KSCAN_ESCAPE) == "escape" and key_name(pygame.KSCAN_LSHIFT) is None


def test_signs_are_named_by_what_is_typed():
    assert key_name(pygame.KSCAN_EQUALS, "+") == "+" and key_name(pygame.KSCAN_EQUALS, "=") == "="
    assert key_name(pygame.KSCAN_RIGHTBRACKET, "+") == "+"  # German
    assert key_name(pygame.KSCAN_SLASH, "-") == "-" and key_name(pygame.KSCAN_SLASH, "/") is None
    assert key_name(pygame.KSCAN_KP_PLUS, "+") == "+"


def test_a_mouse_position_is_that_of_the_panel():
    black, white = np.zeros((32, 48, 3), np.uint8), np.full((32, 48, 3), 255, np.uint8)
    image = compose_panels([Panel("a", black), Panel("b", white)], 64)
    assert image.shape == (CAPTION_HEIGHT + 64, 96 + GAP + 96, 3)
    assert (image[CAPTION_HEIGHT:, :96] == 0).all()
    assert (image[CAPTION_HEIGHT:, 96 + GAP :] == 255).all()
    for x, fraction in ((24, 0.25), (96 + GAP + 72, 0.75), (500, 1.0), (-3, 0.0)):
        position = panel_position(x, CAPTION_HEIGHT + 16, 64, 2, 1.5)
        assert position == pytest.approx((fraction, 0.25), abs=0.02)
    assert panel_position(0, 0, 64)[1] == 0 and panel_position(0, 900, 64)[1] == 1


def test_the_pointer_is_a_ring_in_every_panel():
    white = np.full((32, 32, 3), 255, np.uint8)
    image = compose_panels([Panel("a", white), Panel("b", white)], 64, pointer=(0.5, 0.25))
    for left in (0, 64 + GAP):
        y, x = np.nonzero((image[CAPTION_HEIGHT:, left : left + 64] < 128).any(-1))
        assert abs(x.mean() - 32) < 1.5 and abs(y.mean() - 16) < 1.5


def test_text_is_below_the_image_and_wrapped_where_it_is_too_long():
    image = np.full((40, 500, 3), 200, np.uint8)
    one, two = add_text(image, ["a"]), add_text(image, ["a", "b"])
    words = "  ".join(f"word{i}" for i in range(14))
    assert text_width(words) > 500
    wrapped = add_text(image, [words])
    np.testing.assert_array_equal(wrapped[:40], image)
    assert wrapped.shape == two.shape and two.shape[0] > one.shape[0]
    edge = wrapped[40:, -6:]
    assert (edge == edge[0, 0]).all()  # nothing is cut


def test_a_missing_display_is_reported_in_one_line(tmp_path: Path):
    write_toy_shards(tmp_path / "shards", episodes=4)
    rest = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    cases = {"no DISPLAY is set": rest, "display :987 does not answer": rest | {"DISPLAY": ":987"}}
    started = {
        reason: subprocess.Popen(
            play_command("--run", str(tmp_path)), env=environment, stderr=subprocess.PIPE, text=True
        )
        for reason, environment in cases.items()
    }
    for reason, process in started.items():
        _, printed = process.communicate(timeout=60)
        assert process.returncode == 1, printed
        assert len(printed.strip().splitlines()) == 1
        assert reason in printed and "--headless" in printed


def test_a_display_that_never_answers_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as server:  # it takes the connection, as a tunnel whose far end sleeps
        for number in range(40, 99):
            with suppress(OSError):
                server.bind(("127.0.0.1", 6000 + number))
                break
        server.listen(8)
        monkeypatch.setenv("DISPLAY", f"127.0.0.1:{number}")
        monkeypatch.setattr(window, "DISPLAY_SECONDS", 0.5)
        monkeypatch.setattr("sys.platform", "linux")
        message = rf"127.0.0.1:{number} does not answer within 0.5 s; --headless writes a video"
        with pytest.raises(ValueError, match=message) as problem:
            check_display()
    assert "\n" not in str(problem.value)


# -- under Xvfb -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    missing = [name for name in ("Xvfb", "xdotool") if shutil.which(name) is None]
    if missing or sys.platform != "linux":
        pytest.skip(f"{' and '.join(missing) or 'an X server'} not installed")
    reading, writing = os.pipe()
    command = [
        "Xvfb",
        "-displayfd",
        str(writing),
        "-screen",
        "0",
        "1024x768x24",
        "-nolisten",
        "tcp",
        "-noreset",  # else it starts over whenever the last client goes, and newcomers with it
    ]
    server = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    with os.fdopen(reading) as printed:
        number = printed.readline().strip()
    if not number:
        pytest.skip("Xvfb does not start here")
    yield f":{number}"
    server.terminate()
    server.wait(10)


class Screen:
    """A person at the display: looks, moves the mouse, presses keys."""

    def __init__(self, display: str, run: Path) -> None:
        self.display, self.run = display, run
        self.environment = os.environ | {"DISPLAY": display}

    def do(self, *command: str) -> str:
        return self.run_command("xdotool", *command)

    def run_command(self, *command: str) -> str:
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    @contextmanager
    def game(self, command: list[str]) -> Iterator[subprocess.Popen]:
        """A game and its window; at the end it must have printed no traceback."""
        with open(self.run / "printed", "w") as printed:
            game = subprocess.Popen(command, env=self.environment, stdout=printed, stderr=printed)
        try:
            self.process = game.pid
            self.find_window(game)
            yield game
        finally:
            if game.poll() is None:
                game.kill()
                game.wait()
        assert "Traceback" not in (self.run / "printed").read_text()

    def find_window(self, game: subprocess.Popen) -> None:
        def found() -> str:
            assert game.poll() is None, f"the game ended: {(self.run / 'printed').read_text()}"
            return self._search()

        self.window = self.wait_for(found, "a window", seconds=60).splitlines()[-1]
        self.do("windowmove", "--sync", self.window, "40", "30")

    def _search(self) -> str:
        try:
            return self.do("search", "--all", "--onlyvisible", "--pid", str(self.process))
        except subprocess.CalledProcessError:
            return ""

    def press(self, *keys: str) -> None:
        for key in keys:
            try:
                self.do("key", "--window", self.window, key)
            except subprocess.CalledProcessError:
                assert key == "q"  # the window was gone before the key came up
            if key == "q":  # which is not always told, and the next game would receive it
                self.do("keyup", key)
            time.sleep(0.15)

    def mouse(self, x: float, y: float) -> None:
        """Move to a fraction of the first panel."""
        place = round(x * SIZE), round(CAPTION_HEIGHT + y * SIZE)
        self.do("mousemove", "--window", self.window, str(place[0]), str(place[1]))

    def look(self) -> np.ndarray:
        """Take the window's pixels off the screen."""
        where = dict(
            line.split("=") for line in self.do("getwindowgeometry", "--shell", self.window).split()
        )
        x, y = int(where["X"]), int(where["Y"])
        box = (x, y, x + int(where["WIDTH"]), y + int(where["HEIGHT"]))
        return np.array(ImageGrab.grab(bbox=box, xdisplay=self.display).convert("RGB"))

    def disc(self, panel: int = 0) -> tuple[float, float]:
        left = panel * (SIZE + GAP)
        return blue_at(self.look()[CAPTION_HEIGHT : CAPTION_HEIGHT + SIZE, left : left + SIZE])

    def wait_for(self, see: Callable[[], object], what: str, seconds: float = 10) -> str:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            seen = see()
            if seen:
                return seen if isinstance(seen, str) else ""
            time.sleep(0.1)
        imageio.imwrite(self.run / "screen.png", np.array(ImageGrab.grab(xdisplay=self.display)))
        raise AssertionError(f"{what} did not come; the screen is in {self.run / 'screen.png'}")

    def wait_for_disc(self, x: float, y: float, panel: int = 0) -> None:
        def there() -> bool:
            try:
                seen = self.disc(panel)
            except AssertionError:
                return False
            return abs(seen[0] - x) < 0.05 and abs(seen[1] - y) < 0.05

        self.wait_for(there, f"the disc at {x}, {y} of panel {panel}")


def test_a_real_window_follows_real_keys_and_a_real_mouse(display: str, tmp_path: Path):
    write_toy_shards(tmp_path / "shards", episodes=12)
    (tmp_path / "controller").mkdir()
    (tmp_path / "controller/best.pt").touch()  # play.py looks whether it is there
    screen = Screen(display, tmp_path)
    flags = ["--run", str(tmp_path), "--size", str(SIZE), "--fps", "20", "--episode", "0"]
    with screen.game(play_command(*flags)) as game:
        screen.mouse(0.3, 0.8)
        screen.wait_for_disc(0.3, 0.8)
        screen.mouse(0.7, 0.25)
        screen.wait_for_disc(0.7, 0.25)
        screen.press("Left", "Left", "Left", "Down")  # 4 percent each
        screen.wait_for_disc(0.58, 0.29)

        screen.press("p")
        screen.mouse(0.2, 0.2)
        time.sleep(0.4)
        screen.wait_for_disc(0.58, 0.29)  # it waits
        held = screen.disc()
        screen.press("n")
        screen.wait_for(lambda: screen.disc() != held, "a single step")
        moved = np.hypot(*(np.array(screen.disc()) - held))
        assert moved < 0.13, "more than one step"
        screen.press("space")
        screen.wait_for_disc(0.2, 0.2)

        narrow = screen.look().shape[1]
        screen.press("b")
        screen.wait_for(lambda: screen.look().shape[1] > narrow, "the simulator")
        screen.wait_for_disc(0.2, 0.2, panel=1)

        screen.press("v")
        time.sleep(0.5)
        screen.press("v")
        folder = tmp_path / "play/recording-000"
        screen.wait_for(lambda: (folder / "actions.npy").exists(), "a video")
        shots = sorted((folder / "frames").iterdir())
        shot = imageio.imread(shots[-1])
        assert shot.shape == (CAPTION_HEIGHT + SIZE, 2 * SIZE + GAP, 3)
        np.testing.assert_allclose(blue_at(shot[CAPTION_HEIGHT:, :SIZE]), (0.2, 0.2), atol=0.05)
        assert len(np.load(folder / "actions.npy")) == len(shots) - 1
        assert (folder / "rollout.gif").exists() and (folder / "rollout.mp4").exists()

        screen.press("c")
        screen.wait_for_disc(0.97, 0.03)
        screen.press("c", "p", "r")
        screen.wait_for(lambda: screen.disc()[0] < 0.9, "another start")
        assert game.poll() is None
        screen.press("q")
        assert game.wait(15) == 0


def test_real_keys_walk_jump_look_and_attack_at_once(display: str, tmp_path: Path):
    write_walks(tmp_path / "shards")
    screen = Screen(display, tmp_path)
    flags = ["--preset", "minecraft", "--run", str(tmp_path), "--size", str(SIZE)]
    folder = tmp_path / "play/recording-000"
    with screen.game(play_command(*flags, script=WALK)) as game:
        screen.mouse(0.2, 0.5)
        screen.do("windowfocus", screen.window)
        time.sleep(1.5)  # until the turn by the pointer's way here is over
        screen.press("v")
        screen.do("keydown", "w")
        time.sleep(1.2)
        screen.do("keydown", "space")  # from now on X repeats this key alone
        time.sleep(1.0)
        screen.do("mousedown", "1")
        for place in np.linspace(0.2, 0.6, 12):
            screen.mouse(float(place), 0.5)
            time.sleep(0.05)
        screen.do("mouseup", "1", "keyup", "space", "keyup", "w")
        time.sleep(1.2)
        screen.press("v")
        screen.wait_for(lambda: (folder / "actions.npy").exists(), "a video")
        screen.press("q")
        assert game.wait(15) == 0
    yaw, pitch, attack, jump, move = SPEC.unravel(np.load(folder / "actions.npy")).T
    forward = move == MOVES.index("forward")
    assert (forward & (jump == 0)).sum() > 5, "first walking alone"
    assert (forward & (jump == 1) & (attack == 0)).sum() > 5, "then jumping too"
    assert (forward & (jump == 1) & (attack == 1) & (yaw > 5)).sum() > 2, "then all at once"
    first, last = np.flatnonzero(jump)[[0, -1]]
    assert forward[first : last + 1].all(), "a jump does not end the walk"
    turned = np.array(SPEC.factors[0].values)[yaw].sum()
    assert turned == pytest.approx(0.4 * DEGREES_PER_WIDTH, abs=2) and (pitch == 5).all()
    assert move[-1] == jump[-1] == attack[-1] == 0, "in the end all keys are released"


def test_a_planner_plays_towards_a_goal_that_a_key_has_frozen(display: str, tmp_path: Path):
    write_toy_shards(tmp_path / "shards", episodes=6, length=40)
    write_run(tmp_path, EpisodeDataset(tmp_path / "shards"), method="keypoints")
    screen = Screen(display, tmp_path)
    flags = ["--run", str(tmp_path), "--size", str(SIZE), "--fps", "20"]
    small = ["--task-planner.num-samples", "8", "--task-planner.horizon", "2"]
    command = [sys.executable, str(TESTS.parent / "play.py"), *flags, *small]
    with screen.game(command) as game:
        screen.press("h")
        height = screen.look().shape[0]
        screen.press("t")  # nothing has learned the task
        screen.wait_for(lambda: screen.look().shape[0] > height, "what is missing, in lines")
        screen.press("g", "v", "t")
        time.sleep(1.5)
        screen.press("v")
        actions = tmp_path / "play/recording-000/actions.npy"
        screen.wait_for(lambda: actions.exists(), "a video")
        screen.press("q")
        assert game.wait(15) == 0
    steps = np.diff(np.load(actions), axis=0)
    assert len(steps) > 10 and np.abs(steps).max() > 0, "a planner moved the target"


def close(display: str, window: int) -> None:
    """Ask a window to close, as a click on its cross does (old xdotool has no windowquit)."""
    x11 = ctypes.CDLL("libX11.so.6")
    x11.XOpenDisplay.restype = ctypes.c_void_p
    screen = ctypes.c_void_p(x11.XOpenDisplay(display.encode()))
    message = (ctypes.c_long * 24)()  # XClientMessageEvent, all of whose fields are this wide
    message[0], message[4], message[6] = 33, window, 32
    message[5] = x11.XInternAtom(screen, b"WM_PROTOCOLS", 0)
    message[7] = x11.XInternAtom(screen, b"WM_DELETE_WINDOW", 0)
    x11.XSendEvent(screen, ctypes.c_ulong(window), 0, ctypes.c_long(0), message)
    x11.XSync(screen, 0)
    x11.XCloseDisplay(screen)


def test_closing_the_window_ends_the_game(display: str, tmp_path: Path):
    write_toy_shards(tmp_path / "shards", episodes=4)
    screen = Screen(display, tmp_path)
    with screen.game(play_command("--run", str(tmp_path), "--size", "96")) as game:
        screen.press("v")
        close(display, int(screen.window))
        assert game.wait(15) == 0
        # an unfinished video is written
        assert (tmp_path / "play/recording-000/rollout.mp4").exists()


def test_a_display_is_recognized(display: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DISPLAY", display)
    check_display()
