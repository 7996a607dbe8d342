import os
from pathlib import Path

import pytest
import torch

from evaluation.readers.network_cache import load_cached

MADE_FROM = {"steps": 2}
WEIGHTS = {"weight": torch.arange(1000.0)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save({"made_from": MADE_FROM, "network": WEIGHTS}, tmp_path / "network.pt")
    return tmp_path / "network.pt"


def test_what_is_whole_and_made_from_the_same_is_taken(path):
    found = load_cached(path, MADE_FROM, "cpu")
    assert found is not None and torch.equal(found["weight"], WEIGHTS["weight"])


def test_what_is_made_from_something_else_is_not(path):
    assert load_cached(path, {"steps": 3}, "cpu") is None
    assert load_cached(path.with_name("none.pt"), MADE_FROM, "cpu") is None


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_what_is_damaged_is_not(path, share):
    os.truncate(path, int(share * path.stat().st_size))
    assert load_cached(path, MADE_FROM, "cpu") is None


def test_another_kind_of_file_is_not(path):
    path.write_text("none of ours")
    assert load_cached(path, MADE_FROM, "cpu") is None
