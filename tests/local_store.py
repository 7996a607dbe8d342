"""A store of S3's kind on this machine, and folders that mirror a place in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.mirror import Mirror

BUCKET = "worlds"


@contextmanager
def served() -> Iterator[str]:
    """Give the endpoint of a server; its tests are skipped where it is not installed."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(
        "127.0.0.1", port=0, verbose=False
    )
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def place(endpoint: str, name: str, monkeypatch: Any) -> str:
    """The address of a test's own place, by its name."""
    import fsspec

    settings = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    if not fs.exists(BUCKET):
        fs.mkdir(BUCKET)
    fsspec.filesystem("s3").clear_instance_cache()
    return f"s3://{BUCKET}/{re.sub(r'[^a-z0-9]+', '-', name)}"


def mirror(address: str, folder: Path, cache_bytes: int = 2**30, whole: bool = False) -> Mirror:
    made = Mirror(address, folder, cache_bytes)
    made.fetch(whole)
    return made


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
