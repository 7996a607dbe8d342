"""Take the picture in docs/how-to/play-in-a-browser.md: the planner plays, the simulator beside it.

Reads   checkpoints/pusht-goals.
Writes  docs/images/browser.png.
Try     python docs/make/browser_page.py, with a Chromium on the PATH
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from bench.browser_load import Config, served  # noqa: E402
from bench.chromium import opened  # noqa: E402

PICTURE = ROOT / "docs/images/browser.png"
PLAYED = 6000  # milliseconds until the picture is taken


def main() -> None:
    run = Config(ROOT / "checkpoints/pusht-goals", fps=10)
    with served(run) as (url, _), opened(900, 760, color_scheme="light") as page:
        page.goto(url)
        page.wait_for_timeout(2000)
        page.click("#simulator")
        page.click("#planner")
        page.wait_for_timeout(PLAYED)
        page.click("#pause")
        page.wait_for_timeout(500)
        page.screenshot(path=PICTURE)
    print(f"browser: {PICTURE}")


if __name__ == "__main__":
    main()
