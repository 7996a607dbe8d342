"""Take the picture of the page in docs/browser.md: the planner plays, the simulator beside it.

Reads   checkpoints/pusht-goals.
Writes  docs/images/browser.png.
Try     python docs/make/browser_page.py, with a Chromium on the PATH
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from playwright.sync_api import sync_playwright  # noqa: E402

from bench.browser_load import Config, served  # noqa: E402

PICTURE = ROOT / "docs/images/browser.png"
PLAYED = 6000  # milliseconds until the picture is taken
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    run = Config(ROOT / "checkpoints/pusht-goals", fps=10)
    with served(run) as (url, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 900, "height": 760}, color_scheme="light")
        page.goto(url)
        page.wait_for_timeout(2000)
        page.click("#simulator")
        page.click("#planner")
        page.wait_for_timeout(PLAYED)
        page.click("#pause")
        page.wait_for_timeout(500)
        page.screenshot(path=PICTURE)
        browser.close()
    print(f"browser: {PICTURE}")


if __name__ == "__main__":
    main()
