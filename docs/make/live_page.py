"""Take the pictures of the page of --live in docs/how-to/follow-a-training.md, and of a report.

Reads   RUN, a run that was trained, and another that was evaluated, or the same; they are not
        changed.
Writes  docs/images/live.png, and docs/images/report.png.
Try     python docs/make/live_page.py runs/demo runs/demo, with a Chromium on the PATH
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from bench.chromium import opened  # noqa: E402

IMAGES = ROOT / "docs/images"
SHOWN = 2000  # milliseconds until images are there


def main(run: Path, evaluated: Path) -> None:
    words = [sys.executable, "-m", "evaluation.live", str(run.resolve()), "--port", "0"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[1]
        with opened(1000, 900, color_scheme="light") as page:
            page.goto(f"{url}")
            page.wait_for_timeout(SHOWN)
            page.screenshot(path=IMAGES / "live.png")
        server.terminate()
    report = evaluated / "report/index.html"
    if report.exists():
        with opened(1000, 900, color_scheme="light") as page:
            page.goto(report.resolve().as_uri())
            page.fill("#horizon", "12")
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=IMAGES / "report.png")
    print(f"live: {IMAGES / 'live.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[-1]))
