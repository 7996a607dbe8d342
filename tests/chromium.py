"""A Chromium of the system for tests of pages: how it is started, visited and waited for."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 60.0  # seconds
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
SOFTWARE_GPU = [
    "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan",
    "--use-vulkan=swiftshader", "--use-angle=swiftshader", "--ignore-gpu-blocklist",
]  # fmt: skip


def playwright_or_skip() -> Any:
    """Give playwright's module; skip the file where it, or a Chromium, is not there."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here", allow_module_level=True)
    return pytest.importorskip(
        "playwright.sync_api", reason="requirements-browser-test.txt is not installed"
    )


@contextmanager
def launched() -> Iterator[Any]:
    with playwright_or_skip().sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def visits(browser: Any) -> Iterator[Callable[..., Any]]:
    """Give a function that opens an address in a context of its own; no page may raise an error."""
    contexts: list[Any] = []

    def make(url: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 900, "height": 1000}} | options)
        contexts.append(context)
        page = context.new_page()
        page.problems = []
        page.on("pageerror", lambda problem: page.problems.append(str(problem)))
        page.goto(url)
        return page

    yield make
    for context in contexts:
        for page in context.pages:
            assert not page.problems
        context.close()


def until(page: Any, holds: Callable[[], bool], patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end, page.inner_text("body")
        page.wait_for_timeout(50)


def said(page: Any, text: str) -> None:
    until(page, lambda: text in page.inner_text("#said"))
