"""Batches come in an order that the step alone decides."""

import numpy as np
import pytest

from data.batch_sampler import _permutation, batch_indices


def test_an_epoch_visits_each_example_once():
    seen = np.concatenate([batch_indices(40, 8, step, seed=3) for step in range(5)])
    assert sorted(seen) == list(range(40))


def test_batches_reach_over_the_end_of_an_epoch():
    seen = np.concatenate([batch_indices(10, 4, step, seed=0) for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])


def test_a_step_needs_no_step_before_it():
    forward = [batch_indices(33, 5, step, seed=1) for step in range(20)]
    _permutation.cache_clear()
    for step in reversed(range(20)):
        assert np.array_equal(batch_indices(33, 5, step, seed=1), forward[step])


def test_a_batch_may_be_larger_than_the_set():
    assert np.array_equal(np.bincount(batch_indices(3, 9, 0, seed=0)), [3, 3, 3])


def test_another_seed_is_another_order():
    assert not np.array_equal(
        batch_indices(100, 100, 0, seed=0), batch_indices(100, 100, 0, seed=1)
    )


def test_nothing_has_no_order():
    with pytest.raises(ValueError, match="no examples"):
        batch_indices(0, 4, 0, seed=0)
