"""Results of an evaluation on the disk: what is not as it was written counts as not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.result_cache import ResultCache

KEY = {"seed": 0}


@pytest.fixture
def cache(tmp_path: Path) -> ResultCache:
    cache = ResultCache(tmp_path)
    cache.get_or_compute("play", KEY, lambda: {"n": 3, "psnr": [1.5, float("nan")]})
    return cache


def test_a_result_is_computed_once_for_a_key(cache):
    assert cache.get_or_compute("play", KEY, lambda: {"n": 4}) == {"n": 3, "psnr": [1.5, None]}
    assert cache.load("play", {"seed": 1}) is None
    assert cache.get_or_compute("play", {"seed": 1}, lambda: {"n": 4}) == {"n": 4}


@pytest.mark.parametrize(
    "change",
    [
        {"result": {}},
        {"result": None},
        {"seconds": "long"},
        {"digest": None},
        {"result": {"n": 4, "psnr": [1.5, None]}},
    ],
)
def test_an_entry_that_was_changed_counts_as_not_there(cache, change):
    path = cache.folder / "play.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert cache.load("play", KEY) is None and cache.total_seconds(["play"]) == 0
    assert cache.get_or_compute("play", KEY, lambda: {"n": 4}) == {"n": 4}


@pytest.mark.parametrize("content", [b"", b"7", b"{}", b"[]", b'{"a": "\xff"}', b"[" * 100_000])
def test_a_file_that_is_no_entry_counts_as_not_there(cache, content):
    (cache.folder / "play.json").write_bytes(content)
    assert cache.load("play", KEY) is None and cache.total_seconds(["play"]) == 0


def test_an_entry_that_is_cut_or_has_another_byte_counts_as_not_there(cache):
    path = cache.folder / "play.json"
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1
        for damaged in (bytes(changed), content[:place]):
            path.write_bytes(damaged)
            found = cache.load("play", KEY)
            assert found is None or json.loads(damaged) == json.loads(content)  # white space
