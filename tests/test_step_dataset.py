"""The order of batches depends on the step and the seed alone."""

import numpy as np
import pytest

from pipeline.batches.step_dataset import _permutation, batch_indices


def test_an_epoch_visits_each_example_once():
    visited = np.concatenate([batch_indices(40, 8, step, seed=3) for step in range(5)])
    assert sorted(visited) == list(range(40))


def test_a_batch_may_span_two_epochs():
    visited = np.concatenate([batch_indices(10, 4, step, seed=0) for step in range(5)])
    assert sorted(visited[:10]) == sorted(visited[10:]) == list(range(10))
    assert list(visited[:10]) != list(visited[10:])


def test_a_batch_does_not_depend_on_earlier_ones():
    forward = [batch_indices(33, 5, step, seed=1) for step in range(20)]
    _permutation.cache_clear()
    for step in reversed(range(20)):
        assert np.array_equal(batch_indices(33, 5, step, seed=1), forward[step])


def test_a_batch_may_be_larger_than_the_dataset():
    assert np.array_equal(np.bincount(batch_indices(3, 9, 0, seed=0)), [3, 3, 3])


def test_another_seed_gives_another_order():
    assert not np.array_equal(
        batch_indices(100, 100, 0, seed=0), batch_indices(100, 100, 0, seed=1)
    )


def test_no_examples_are_an_error():
    with pytest.raises(ValueError, match="no examples"):
        batch_indices(0, 4, 0, seed=0)
