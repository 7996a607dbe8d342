import os
from pathlib import Path

import pytest
import torch

from evaluation.readers.network_cache import load_cached

CACHE_KEY = {"steps": 2}
WEIGHTS = {"weight": torch.arange(1000.0)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save({"cache_key": CACHE_KEY, "network": WEIGHTS}, tmp_path / "network.pt")
    return tmp_path / "network.pt"


def test_weights_with_the_same_key_are_loaded(path):
    found = load_cached(path, CACHE_KEY, "cpu")
    assert found is not None and torch.equal(found["weight"], WEIGHTS["weight"])


def test_weights_with_another_key_are_not(path):
    assert load_cached(path, {"steps": 3}, "cpu") is None
    assert load_cached(path.with_name("none.pt"), CACHE_KEY, "cpu") is None


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_damaged_file_is_not(path, share):
    os.truncate(path, int(share * path.stat().st_size))
    assert load_cached(path, CACHE_KEY, "cpu") is None


def test_another_kind_of_file_is_not(path):
    path.write_text("none of ours")
    assert load_cached(path, CACHE_KEY, "cpu") is None
