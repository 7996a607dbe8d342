"""Visit the page of play.py --browser as many people at once, or in a Chromium, and measure.

Reads   a run, in a server that is started for it.
Writes  nothing; prints one line of figures.
Try     python -m bench.browser_load --run checkpoints/pusht-goals --players 8
        python -m bench.browser_load --run checkpoints/pusht-goals --chromium --fps 30

The time from an input to the frame that shows it is the page's own: from the moment that the
pointer moves to the moment that the frame is drawn, or received where there is no Chromium.
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import asyncio
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from bench.chromium import heap_bytes, opened
from data.ranges import CheckedConfig, Range

ROOT = Path(__file__).parents[1]
WARM_UP = 3.0  # seconds in Chromium that do not count
LONGEST_WAIT = 60.0  # seconds for a message
INPUT_SECONDS = 0.13  # between two motions of a person, on average
PORT_LINE = "http://"


@dataclass(frozen=True)
class Config(CheckedConfig):
    run: Path = Path("checkpoints/pusht-goals")
    """Folder of the run to play in."""
    players: Annotated[int, Range(1, 512)] = 1
    """People at a time."""
    fps: Annotated[float, Range(0.1, 240)] = 10.0
    """Steps a second of the world."""
    seconds: Annotated[float, Range(1, 3600)] = 20.0
    """How long to measure."""
    chromium: bool = False
    """One person in a Chromium of the system, in the place of bare connections."""


@dataclass
class Seen:
    """What one person got."""

    frames: int
    trips: list[float]
    """Milliseconds from an input to the frame that shows it."""


def main(config: Config) -> None:
    with served(config) as (url, process):
        seconds = config.seconds
        if config.chromium:
            seen, used = in_chromium(url, seconds, process)
        else:
            seen, used = asyncio.run(all_players(url, config, process))
    trips = np.array([trip for each in seen for trip in each.trips])
    frames = [each.frames / seconds for each in seen]
    p50, p95 = np.percentile(trips, [50, 95]) if len(trips) else (math.nan, math.nan)
    how = "in Chromium" if config.chromium else "bare connections"
    steps = max(each.frames for each in seen)  # of the world, as the quickest page has seen them
    print(
        f"browser: {config.players} players ({how}) at {config.fps:g} steps/s for {seconds:g} s: "
        f"{np.mean(frames):.1f} frames/s each (slowest {min(frames):.1f}), input to frame p50 "
        f"{p50:.0f} ms, p95 {p95:.0f} ms (n {len(trips)}); server "
        f"{1000 * used / max(1, steps):.0f} ms of processor time a step, load "
        f"{os.getloadavg()[0]:.1f}"
    )


@contextmanager
def served(config: Config) -> Iterator[tuple[str, int]]:
    """Start the server; give its address and process."""
    words = ["play.py", "--run", str(config.run.resolve()), "--browser", "--fps", str(config.fps),
             "--server.port", "0", "--server.max-players", str(config.players)]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = next((w for x in process.stdout for w in x.split() if PORT_LINE in w), "")
        try:
            if not url:
                raise ValueError("play.py --browser did not begin; its own line says why")
            yield url, process.pid
        finally:
            process.terminate()


def cpu_seconds(process: int) -> float:
    """Processor time of a process so far, where Linux tells it; NaN elsewhere."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(process: int) -> float:
    """Memory that a process holds, where Linux tells it; NaN elsewhere."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return math.nan
    return pages * os.sysconf("SC_PAGE_SIZE")


async def all_players(url: str, config: Config, process: int) -> tuple[list[Seen], float]:
    """Let all play, and begin to measure when the last one has a frame; also give the processor
    time of the server."""
    begun = asyncio.Barrier(config.players)
    before: list[float] = []

    async def play(number: int) -> Seen:
        return await one_player(url, config.seconds, number, begin)

    async def begin() -> None:
        await begun.wait()
        before.append(cpu_seconds(process))

    seen = await asyncio.gather(*map(play, range(config.players)))
    return list(seen), cpu_seconds(process) - before[0]


async def one_player(
    url: str, seconds: float, number: int, begin: Callable[[], Awaitable[None]]
) -> Seen:
    """Move the pointer at random, acknowledge each frame, and keep the time.  begin: waits for the
    others, after the first frame."""
    from websockets.asyncio.client import connect

    from pipeline.play.browser.messages import HEADER

    origin = url.partition("#")[0].rstrip("/")
    seen, drawn = Seen(0, []), random.Random(number)
    async with connect(origin.replace("http", "ws") + "/play", origin=origin) as socket:  # type: ignore[arg-type]
        await socket.send(json.dumps({"t": "hello", "v": 1}))

        async def move() -> None:
            while True:
                await asyncio.sleep(drawn.uniform(0.5, 1.5) * INPUT_SECONDS)
                x, y = drawn.random(), drawn.random()
                message = {"t": "pointer", "x": x, "y": y, "at": 1000 * time.perf_counter()}
                await socket.send(json.dumps(message))

        moving = asyncio.create_task(move())
        last, begins = 0.0, math.inf
        waiting: asyncio.Task[None] | None = None
        try:
            while (now := time.perf_counter()) < begins + seconds:
                message: Any = await asyncio.wait_for(socket.recv(), LONGEST_WAIT)
                if isinstance(message, str):
                    continue
                now = time.perf_counter()
                _, _, _, frame, at = HEADER.unpack_from(message)
                await socket.send(json.dumps({"t": "ack", "n": frame}))
                if waiting is None:
                    waiting = asyncio.ensure_future(begin())
                elif waiting.done() and begins == math.inf:
                    begins = now
                if now > begins:
                    seen.frames += 1
                    if at > last:
                        seen.trips.append(1000 * now - at)
                last = at
        finally:
            moving.cancel()
    return seen


def in_chromium(url: str, seconds: float, process: int) -> tuple[list[Seen], float]:
    """Move the mouse over the page, and read what the page has measured; also give the processor
    time of the server."""
    drawn = random.Random(0)
    with opened() as page:
        page.goto(url)
        box = page.locator("#world").bounding_box()
        assert box is not None

        def move(until: float) -> None:
            while time.perf_counter() < until:
                x, y = drawn.random() * box["width"], drawn.random() * box["height"]
                page.mouse.move(box["x"] + x, box["y"] + y)
                page.wait_for_timeout(1000 * drawn.uniform(0.5, 1.5) * INPUT_SECONDS)

        move(time.perf_counter() + WARM_UP)
        page.evaluate("measured.frames = 0; measured.roundTrips.length = 0")
        before, memory = cpu_seconds(process), (resident_bytes(process), heap_bytes(page))
        move(time.perf_counter() + seconds)
        frames, trips = page.evaluate("[measured.frames, measured.roundTrips]")
        used = cpu_seconds(process) - before
        for name, was, now in zip(
            ("server", "page"), memory, (resident_bytes(process), heap_bytes(page)), strict=True
        ):
            print(f"browser: memory of the {name} {was / 1e6:.1f} MB, then {now / 1e6:.1f} MB")
    return [Seen(frames, trips)], used


if __name__ == "__main__":
    from pipeline.cli import run_cli

    run_cli(main, Config)
