"""Action spaces that no model could be trained on are refused."""

from __future__ import annotations

import pytest
import torch

from data.actions import ActionSpec


def test_a_range_that_float32_holds_is_normalized_without_overflow():
    spec = ActionSpec("continuous", ("x",), (-1e38,), (1e38,))
    found = spec.normalize(torch.tensor([[-1e38], [0.0], [1e38]]))
    assert found.flatten().tolist() == [-1, 0, 1]


@pytest.mark.parametrize(
    "low, high, answer",
    [
        (-3e38, 3e38, "far apart"),
        (-1e300, 1e300, "far apart"),
        (1e8, 1e8 + 1, "close"),
        (0.0, 1e-300, "close"),
        (0.0, float("inf"), "finite"),
        (1.0, 1.0, "the lower first"),
    ],
)
def test_a_range_that_overflows_or_vanishes_in_float32_is_refused(low, high, answer):
    with pytest.raises(ValueError, match=f"limits from .*{answer}"):
        ActionSpec("continuous", ("x",), (low,), (high,))


def test_a_difference_of_long_lists_is_told_in_a_short_line():
    many = ActionSpec("discrete", tuple(f"action {n}" for n in range(400)))
    fewer = ActionSpec("discrete", many.names[:-1])
    with pytest.raises(ValueError, match="different action spaces: names is") as problem:
        many.check_same(fewer, "one", "other")
    assert len(str(problem.value)) < 400
