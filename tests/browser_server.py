"""play.py --browser, and what its page shows: for tests in a Chromium."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chromium import PATIENCE, until
from pointer_world import PointerWorld, ToTheRight

import play
from pipeline.play.browser.server_config import ServerConfig

ROOT, TESTS = Path(__file__).parents[1], Path(__file__).parent
PLAY = f"""
import sys; sys.path[:0] = {[str(ROOT), str(TESTS)]!r}
import play
from pipeline.cli import run_cli
from pointer_world import PointerWorld, ToTheRight
play.load_world = lambda run, int8: PointerWorld()
play.load_controller = lambda run, world: ToTheRight()
play.main.__module__ = "play"
run_cli(play.main, play.Config, "play")
"""
BLUE = """(panel) => {
  const canvas = document.getElementById("world"), step = 4;
  const width = panel ? (canvas.width - 4) / 2 : canvas.height;
  const left = panel * (width + 4);
  const pixels = canvas.getContext("2d").getImageData(left, 0, width, canvas.height).data;
  let n = 0, x = 0, y = 0;
  for (let row = 0; row < canvas.height; row += step) for (let column = 0; column < width; column += step) {
    const at = 4 * (row * width + column);
    if (Math.abs(pixels[at] - 65) + Math.abs(pixels[at + 1] - 105) + Math.abs(pixels[at + 2] - 225) < 60) {
      n += 1; x += column / width; y += row / canvas.height;
    }
  }
  return n ? [x / n, y / n] : null;
}"""  # noqa: E501


@contextmanager
def serving(run: Path, world: Any = None, controller: Any = None, **others: Any) -> Iterator[str]:
    """Serve in a thread of this process, which starts in no time; give the address.

    Without a world it is PointerWorld and its controller.  others: to be replaced in play.py.
    """
    import uvicorn

    if world is None:
        world, controller = PointerWorld(), ToTheRight()
    servers: list[uvicorn.Server] = []

    class Server(uvicorn.Server):
        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            servers.append(self)

    # a game is kept for a minute after its page has closed, and tests do not wait for a place
    server = ServerConfig(port=free_port(), max_players=1024)
    config = play.Config(run=run, browser=True, fps=25, server=server)
    thread = threading.Thread(target=play.main, args=(config,), daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn, "Server", Server)
        patch.setattr(play, "load_world", lambda run, int8: world)
        patch.setattr(play, "load_controller", lambda run, world: controller)
        for name, other in others.items():
            patch.setattr(play, name, other)
        thread.start()
        end = time.monotonic() + PATIENCE
        while not (servers and servers[0].started):
            assert thread.is_alive() and time.monotonic() < end, "the server did not begin"
            time.sleep(0.01)
    yield f"http://127.0.0.1:{server.port}/"
    servers[0].should_exit = True
    thread.join(PATIENCE)
    assert not thread.is_alive()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """The same as a process, as somebody starts it."""

    def __init__(self, run: Path, *flags: str) -> None:
        self.run, self.flags, self.port = run, flags, free_port()
        self.start()

    def start(self) -> None:
        words = ["--run", str(self.run), "--browser", "--fps", "25", *self.flags]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PLAY, *words, "--server.port", str(self.port)],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "http://" in line:
                self.url = line.split()[1]
                return
        raise AssertionError("the server did not begin")

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(how)
        ended = self.process.wait(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return ended


def plays(page: Any) -> None:
    """Wait until frames come, more than those that were there."""
    before = page.evaluate("measured.frames")
    until(page, lambda: page.evaluate("measured.frames") > before + 3)


def goes_to(page: Any, x: float, y: float, panel: int = 0) -> None:
    """Wait until the disc is there."""

    def is_there() -> bool:
        at = page.evaluate(BLUE, panel)
        return at is not None and abs(at[0] - x) + abs(at[1] - y) < 0.1

    until(page, is_there)


def point(page: Any, x: float, y: float) -> None:
    box = page.locator("#world").bounding_box()
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
