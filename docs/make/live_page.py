"""Take the pictures of pages that runs make: of --live, of a report, and of a comparison.

Reads   RUN, a run that was trained; EVALUATED, one with a report; A and B, two with reports. They
        are not changed.
Writes  docs/images/live.webp, report.webp and compare.webp.
Try     python docs/make/live_page.py RUN EVALUATED A B, with a Chromium on the PATH
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from bench.chromium import opened  # noqa: E402

IMAGES = ROOT / "docs/images"
SHOWN = 2000  # milliseconds until images are there
WIDTH, HEIGHT = 520, 760  # narrow, so that letters are read where a phone makes it smaller
LONG = 1080  # pixels of a report, down to its first table


def save(page: Any, name: str) -> None:
    """Save what is seen of a page."""
    image = Image.open(io.BytesIO(page.screenshot()))
    image.save(IMAGES / name, quality=80, method=6)
    print(f"pages: {IMAGES / name}")


def main(run: Path, evaluated: Path, compared: list[Path]) -> None:
    words = [sys.executable, "-m", "evaluation.live", str(run.resolve()), "--port", "0"]
    looks = {"color_scheme": "light", "device_scale_factor": 1.5}
    with (
        subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server,
        tempfile.TemporaryDirectory() as folder,
        opened(WIDTH, HEIGHT, **looks) as page,
    ):
        assert server.stdout is not None
        page.goto(server.stdout.readline().split()[1])
        page.wait_for_timeout(SHOWN)
        save(page, "live.webp")
        server.terminate()
        page.set_viewport_size({"width": WIDTH, "height": LONG})
        page.goto((evaluated / "report/index.html").resolve().as_uri())
        save(page, "report.webp")
        page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        comparison = Path(folder) / "comparison.html"
        words = [sys.executable, "-m", "evaluation.compare", *map(str, compared)]
        subprocess.run([*words, "--page", str(comparison)], cwd=ROOT, check=True)
        page.goto(comparison.as_uri())
        page.evaluate("document.querySelector('.charts').previousElementSibling.scrollIntoView()")
        save(page, "compare.webp")


if __name__ == "__main__":
    trained, measured, *both = (Path(word).resolve() for word in sys.argv[1:])
    main(trained, measured, both)
