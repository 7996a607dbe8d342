"""Play for long in a Chromium, and tell whether the memory of the server and of the page grows.

Reads   RUN, in a server that is started for it, or SITE, an exported page.
Writes  nothing; prints a line a minute, and the growth in the end.
Try     python -m bench.long_play --run checkpoints/pusht-goals
        python -m bench.long_play --site site

The growth is from the median of the first `window` minutes after the warm-up to that of the last
ones.
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from bench.browser_load import Config as ServedConfig
from bench.browser_load import resident_bytes, served
from bench.chromium import heap_bytes, opened, renderer_process
from bench.page_load import first_frame, hosted
from data.ranges import CheckedConfig, Range

MINUTE = 60.0
PAUSE_MS = 200  # between two motions of the pointer
SERVER_KEYS = ("r", "t", "t", "g", "z", "p", "p")  # pressed in turn, one about every ten seconds
PAGE_KEYS = ("r", "t", "t", "g", "h", "h", "u", "e", "e", "k", "k")
KEY_SECONDS = 10.0


@dataclass(frozen=True)
class Config(CheckedConfig):
    run: Path = Path("checkpoints/pusht-goals")
    """Folder of the run to play in."""
    site: Path | None = None
    """Folder of an exported page to play in, in the place of a run."""
    fps: Annotated[float, Range(0.1, 240)] = 10.0
    """Steps a second of a run; an exported page has its own."""
    minutes: Annotated[float, Range(0.05, 1000)] = 30.0
    """How long to play after the warm-up."""
    warm_up: Annotated[float, Range(0, 1000)] = 2.0
    """Minutes that do not count."""
    window: Annotated[int, Range(1, 100)] = 5
    """Samples, one a minute, of which the first and the last are compared."""


def main(config: Config) -> None:
    samples: list[dict[str, float]] = []
    keys = PAGE_KEYS if config.site else SERVER_KEYS
    with at_page(config) as (page, server):
        drawn, key, next_key = random.Random(0), 0, 0.0
        begun = time.monotonic()
        next_sample = begun + MINUTE * config.warm_up
        end = next_sample + MINUTE * config.minutes
        while (now := time.monotonic()) < end + 1:
            if now >= min(next_sample, end):
                samples.append(memory(page, server))
                told = ", ".join(f"{n} {v / 1e6:.2f} MB" for n, v in samples[-1].items())
                print(f"long: minute {(now - begun) / MINUTE:.1f}: {told}", flush=True)
                next_sample += MINUTE
            if now >= next_key:
                page.keyboard.press(keys[key % len(keys)])
                key, next_key = key + 1, now + KEY_SECONDS
            move(page, drawn)
        frames = page.evaluate("measured.frames")
    told = ", ".join(f"{name} {growth(samples, name, config.window):+.1f}%" for name in samples[0])
    print(f"long: {config.minutes:g} minutes, {frames} frames at the page; growth: {told}")


@contextmanager
def at_page(config: Config) -> Iterator[tuple[Any, int]]:
    """Open the page; give it and the process of its server, or 0 where it has none of its own."""
    if config.site is not None:
        with hosted(config.site) as url, opened() as page:
            page.goto(url)
            first_frame(page)
            yield page, 0
        return
    with served(ServedConfig(config.run, fps=config.fps)) as (url, process), opened() as page:
        page.goto(url)
        yield page, process


def move(page: Any, drawn: random.Random) -> None:
    """Move the pointer to anywhere on the image."""
    box = page.locator("#world").bounding_box()
    x, y = drawn.random() * box["width"], drawn.random() * box["height"]
    page.mouse.move(box["x"] + x, box["y"] + y)
    page.wait_for_timeout(PAUSE_MS)


def memory(page: Any, server: int) -> dict[str, float]:
    """Bytes: of JavaScript's objects that are still in use, and that processes hold."""
    found = {"JavaScript": float(heap_bytes(page)), "page": resident_bytes(renderer_process(page))}
    return found | ({"server": resident_bytes(server)} if server else {})


def growth(samples: list[dict[str, float]], name: str, window: int) -> float:
    """Percent, from the median of the first samples to that of the last."""
    values = [sample[name] for sample in samples]
    return float(100 * (np.median(values[-window:]) / np.median(values[:window]) - 1))


if __name__ == "__main__":
    from pipeline.cli import run_cli

    run_cli(main, Config)
