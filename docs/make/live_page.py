"""Take the pictures of pages that runs make: of --live, of a report, and of a comparison.

Reads   a run whose tokenizer is being trained; one with a report, in a relative folder, since the
        page shows its path; two with reports. They are not changed.
Writes  docs/images/live.webp, report.webp and compare.webp.
Try     python docs/make/live_page.py live RUN
        python docs/make/live_page.py report RUN
        python docs/make/live_page.py compare A B, each with a Chromium on the PATH
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from bench.chromium import opened  # noqa: E402

IMAGES = ROOT / "docs/images"
SHOWN = 2000  # milliseconds until images are there
WIDTH, HEIGHT = 520, 860  # narrow, so that letters are read where a phone makes it smaller


def save(page: Any, name: str) -> None:
    """Save what is seen of a page."""
    image = Image.open(io.BytesIO(page.screenshot()))
    image.save(IMAGES / name, quality=80, method=6)
    print(f"pages: {IMAGES / name}")


def live(page: Any, run: Path) -> None:
    words = [sys.executable, "-m", "evaluation.live", str(run), "--port", "0"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        page.goto(server.stdout.readline().split()[1])
        page.wait_for_timeout(SHOWN)
        save(page, "live.webp")
        server.terminate()


def report(page: Any, run: Path) -> None:
    page.goto((run / "report/index.html").as_uri())
    end = page.evaluate("document.querySelector('table').getBoundingClientRect().bottom")
    page.set_viewport_size({"width": WIDTH, "height": round(end) + 12})
    save(page, "report.webp")


def compare(page: Any, *runs: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        comparison = Path(folder) / "comparison.html"
        words = [sys.executable, "-m", "evaluation.compare", *map(str, runs)]
        subprocess.run([*words, "--page", str(comparison)], cwd=ROOT, check=True)
        page.goto(comparison.as_uri())
        page.evaluate("document.querySelector('.charts').previousElementSibling.scrollIntoView()")
        save(page, "compare.webp")


PICTURES: dict[str, Callable[..., None]] = {"live": live, "report": report, "compare": compare}


def main(name: str, runs: list[Path]) -> None:
    with opened(WIDTH, HEIGHT, color_scheme="light", device_scale_factor=1.5) as page:
        PICTURES[name](page, *runs)


if __name__ == "__main__":
    main(sys.argv[1], [Path(word).resolve() for word in sys.argv[2:]])
