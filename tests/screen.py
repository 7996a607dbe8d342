"""Wait for what another thread prints: `capsys` loses what is printed while it is read."""

from __future__ import annotations

import sys
import time
from io import StringIO

import pytest

PATIENCE = 60.0  # seconds


class Screen:
    """What is printed to stderr from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._written = StringIO()
        monkeypatch.setattr(sys, "stderr", self._written)

    def wait_for(self, words: str) -> None:
        end = time.monotonic() + PATIENCE
        while words not in self._written.getvalue():
            assert time.monotonic() < end, f"{words!r} is not in {self._written.getvalue()!r}"
            time.sleep(0.01)
