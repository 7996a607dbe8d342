"""The learning rate of a step."""

from __future__ import annotations

import pytest

from pipeline.training.train_config import TrainConfig

TRAIN = TrainConfig(steps=100, learning_rate=1e-2, warmup_steps=10)


def test_the_rate_warms_up_and_falls_to_a_fiftieth():
    rates = [TRAIN.learning_rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(1e-3, rel=0.01)
    assert max(rates) == rates[9] or max(rates) == rates[10]
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(2e-4)


@pytest.mark.parametrize("turn", [40, 99])
def test_each_turn_has_a_schedule_of_its_own(turn: int):
    """As of two runs, one of the steps before the turn and one of those after."""
    first = TrainConfig(steps=turn, learning_rate=1e-2, warmup_steps=10)
    second = TrainConfig(steps=100 - turn, learning_rate=1e-2, warmup_steps=10)
    expected = [first.learning_rate_at(step) for step in range(turn)]
    expected += [second.learning_rate_at(step) for step in range(100 - turn)]
    found = [TRAIN.learning_rate_at(step, (turn,)) for step in range(100)]
    assert found == pytest.approx(expected)


def test_a_turn_after_the_last_step_changes_nothing():
    for step in range(100):
        assert TRAIN.learning_rate_at(step, (100,)) == TRAIN.learning_rate_at(step)
