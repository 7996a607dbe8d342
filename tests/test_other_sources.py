"""For each clip one of another source."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.measures.other_sources import other_sources


@pytest.mark.parametrize("lengths", [(1000, 5, 5), (1, 1), (3, 3, 3), (7, 1, 2, 30)])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_the_other_clip_is_of_another_source(lengths: tuple[int, ...], share: float):
    sources = np.repeat(np.arange(len(lengths)), lengths)
    found = other_sources(sources, int(share * len(sources)))
    assert (sources[found] != sources).all()


def test_of_many_sources_alike_it_lies_the_shift_behind():
    sources = np.repeat(np.arange(8), 4)
    assert (other_sources(sources, 16) == (np.arange(32) + 16) % 32).all()


def test_of_one_source_it_is_of_the_same():
    assert other_sources(np.zeros(4, int), 2).tolist() == [2, 3, 0, 1]
