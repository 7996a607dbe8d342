"""Visit a page of python -m pipeline.export web in a Chromium, and measure.

Reads   SITE, an exported page, from a static host that is started for it.
Writes  nothing; prints lines of figures.
Try     python -m bench.page_load --site site
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from bench.chromium import heap_bytes, opened
from data.io.files import parse_json
from data.ranges import CheckedConfig, Range

LONGEST_WAIT = 120.0  # seconds for the first frame
PLANS, PLANNED_STEPS = 10, 25
FASTEST = "60"  # steps a second that the page offers
ROLLOUT = """async (steps) => {
  const actions = Array.from({ length: steps }, (_, at) => [Math.sin(at / 9), Math.cos(at / 7)]);
  const begun = performance.now();
  await call("rollout", 0, actions);
  return (performance.now() - begun) / steps;
}"""
PLAN = """async ([search, plans, steps, starts]) => {
  await call("setSearch", search);
  const times = [];
  for (let plan = 0; plan < plans; plan++) {
    await call("begin", plan % starts, 1);
    let spent = 0, last = 0;
    for (let step = 0; step < steps; step++) {
      const [seen] = await call("tick", [null]);
      if (seen.planMs !== last) spent += last = seen.planMs;
    }
    times.push(spent);
  }
  await call("setSearch", false);
  return times;
}"""


@dataclass(frozen=True)
class Config(CheckedConfig):
    site: Path = Path("site")
    """Folder of the exported page."""
    seconds: Annotated[float, Range(1, 3600)] = 20.0
    """How long to play."""


def main(config: Config) -> None:
    if not (config.site / "world.json").exists():
        raise ValueError(
            f"{config.site} is no exported page; python -m pipeline.export web makes one"
        )
    starts = parse_json((config.site / "world.json").read_bytes())["num_starts"]
    size = sum(path.stat().st_size for path in config.site.iterdir())
    with hosted(config.site) as url, opened() as page:
        page.goto(url)
        first = first_frame(page)
        told = {"first frame": first, **played(page, config.seconds)}
        page.click("#pause")
        page.wait_for_timeout(500)
        frame = page.evaluate(ROLLOUT, 200)
        policy = page.evaluate(PLAN, [False, PLANS, PLANNED_STEPS, starts])
        search = page.evaluate(PLAN, [True, PLANS, 5, starts])
    print(
        f"page: {size / 1e6:.1f} MB; first frame {told['first frame']:.0f} ms after the request; "
        f"{told['frames']:.1f} frames/s at {FASTEST} steps/s for {config.seconds:g} s, input to "
        f"frame p50 {told['p50']:.0f} ms, p95 {told['p95']:.0f} ms (n {told['n']:.0f}); memory of "
        f"the page {told['before'] / 1e6:.1f} MB, after it {told['after'] / 1e6:.1f} MB; load "
        f"{os.getloadavg()[0]:.1f}"
    )
    print(
        f"page: step and decoded frame {frame:.2f} ms ({1000 / frame:.0f} a second, n 200); goal "
        f"policy over {PLANNED_STEPS} steps {np.median(policy):.1f} ms, a search "
        f"{np.median(search):.0f} ms (medians of {PLANS})"
    )


@contextmanager
def hosted(folder: Path) -> Iterator[str]:
    """Serve a folder at this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: Any) -> None:
        """Requests are not what is looked at."""


def first_frame(page: Any) -> float:
    """Wait for it; give its time since the page was asked for, in milliseconds."""
    end = time.perf_counter() + LONGEST_WAIT
    while not page.evaluate("window.measured ? measured.firstFrame : 0"):
        if time.perf_counter() > end:
            raise ValueError(f"no frame came; the page says: {page.inner_text('body')[:200]}")
        page.wait_for_timeout(50)
    return page.evaluate("measured.firstFrame")


def played(page: Any, seconds: float) -> dict[str, float]:
    """Move the mouse over the image, and read what the page has measured."""
    page.select_option("#speed", FASTEST)
    box = page.locator("#world").bounding_box()
    drawn = random.Random(0)
    page.wait_for_timeout(1000)
    before = heap_bytes(page)
    page.evaluate("measured.frames = 0; measured.roundTrips.length = 0")
    begun, trips = time.perf_counter(), []
    while time.perf_counter() < begun + seconds:
        x, y = drawn.random() * box["width"], drawn.random() * box["height"]
        page.mouse.move(box["x"] + x, box["y"] + y)
        page.wait_for_timeout(130)
    spent = time.perf_counter() - begun
    frames, trips = page.evaluate("[measured.frames, measured.roundTrips]")
    p50, p95 = np.percentile(trips, [50, 95])
    return {
        "frames": frames / spent, "p50": p50, "p95": p95, "n": len(trips),
        "before": before, "after": heap_bytes(page),
    }  # fmt: skip


if __name__ == "__main__":
    from pipeline.cli import run_cli

    run_cli(main, Config)
