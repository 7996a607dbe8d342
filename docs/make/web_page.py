"""Take the picture in docs/how-to/export-a-page.md: a race against the planner.

Reads   SITE, an exported page.
Writes  docs/images/web.png.
Try     python docs/make/web_page.py site, with a Chromium on the PATH
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from bench.chromium import opened  # noqa: E402
from bench.page_load import first_frame, hosted  # noqa: E402

PICTURE = ROOT / "docs/images/web.png"
PLAYED = 3000  # milliseconds until the picture is taken


def main(site: Path) -> None:
    with hosted(site) as url, opened(900, 720, color_scheme="light") as page:
        page.goto(url)
        first_frame(page)
        page.click("#keypoints")
        page.click("#race")
        box = page.locator("#world").bounding_box()
        page.mouse.move(box["x"] + 0.62 * box["width"], box["y"] + 0.42 * box["height"])
        page.wait_for_timeout(PLAYED)
        page.click("#pause")
        page.wait_for_timeout(500)
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=PICTURE)
    print(f"web: {PICTURE}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
