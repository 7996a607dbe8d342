"""A Chromium of the system, for measurements and pictures of pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


@contextmanager
def opened(width: int = 900, height: int = 900, **options: Any) -> Iterator[Any]:
    """Give an empty page; ValueError where there is no Chromium, or no playwright."""
    try:
        from playwright.sync_api import sync_playwright  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError(
            "pages are visited with playwright; python -m pip install -r "
            "requirements-browser-test.txt"
        ) from None
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        raise ValueError("pages are visited with a Chromium on the PATH (Debian: apt-get install)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser.new_page(viewport={"width": width, "height": height}, **options)
        browser.close()


def heap_bytes(page: Any) -> int:
    """Memory of a page's JavaScript, of what is still in use."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    metrics = session.send("Performance.getMetrics")["metrics"]
    session.detach()
    return int(next(m["value"] for m in metrics if m["name"] == "JSHeapUsedSize"))


def renderer_process(page: Any) -> int:
    """Give the process that holds the page: of all that draw pages, the one that worked most."""
    session = page.context.browser.new_browser_cdp_session()
    listed = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    renderers = [one for one in listed if one["type"] == "renderer"]
    return int(max(renderers, key=lambda one: one["cpuTime"])["id"])
