import os
from pathlib import Path

import pytest
import torch
from torch import nn

from evaluation.readers.network_cache import load_cached, save_cached

CACHE_KEY = {"steps": 2}


def network(seed: int, width: int = 30) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(width, 30)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_cached(tmp_path / "network.pt", CACHE_KEY, network(0))
    return tmp_path / "network.pt"


def refused(path: Path, cache_key: dict[str, int] = CACHE_KEY, width: int = 30) -> bool:
    """Whether nothing was loaded, and the network is as it was."""
    before, after = network(1, width), network(1, width)
    return not load_cached(path, cache_key, after) and torch.equal(before.weight, after.weight)


def test_weights_with_the_same_key_are_loaded(path):
    found = network(1)
    assert load_cached(path, CACHE_KEY, found)
    assert torch.equal(found.weight, network(0).weight) and not found.training


def test_weights_with_another_key_are_not(path):
    assert refused(path, {"steps": 3})
    assert refused(path.with_name("none.pt"))


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_damaged_file_is_not(path, share):
    os.truncate(path, int(share * path.stat().st_size))
    assert refused(path)


def test_another_kind_of_file_is_not(path):
    path.write_text("none of ours")
    assert refused(path)


def test_weights_of_another_network_are_not(path):
    assert refused(path, width=20)


def test_weights_that_were_put_in_place_of_those_that_were_written_are_not(path):
    saved = torch.load(path, weights_only=True)
    saved["network"]["weight"][3, 4] += 1
    torch.save(saved, path)
    assert refused(path)
    for content in ([], {}, {"digest": "0", "cache_key": CACHE_KEY, "network": []}):
        torch.save(content, path)
        assert refused(path)
