"""play.py --browser as a process, and what its page shows: for tests in a Chromium."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from chromium import PATIENCE, until

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


class Server:
    """play.py --browser, as somebody starts it."""

    def __init__(self, run: Path, *flags: str, program: str = PLAY) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.run, self.flags, self.program = run, flags, program
        self.start()

    def start(self) -> None:
        words = ["--run", str(self.run), "--browser", "--fps", "25", *self.flags]
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.program, *words, "--server.port", str(self.port)],
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
