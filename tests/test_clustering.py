"""Codes against labels: an oracle agrees fully, what is random as its own baseline says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from evaluation.measures.clustering import (
    assign,
    code_use,
    compare_codes,
    normalized_mutual_information,
)


def cases(n: int = 600, labels: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, labels, n), np.arange(n) // 20


def test_an_oracle_under_any_names_agrees_fully():
    labels, groups = cases()
    names = np.array([3, 0, 4, 1, 2])
    found = compare_codes(names[labels], labels, groups, num_codes=5)
    assert found["nmi"] == pytest.approx(1) and found["accuracy"] == 1
    assert found["nmi_low"] == pytest.approx(1) and found["n"] == 600 and found["sources"] == 30


def test_a_constant_code_says_nothing_and_is_right_as_often_as_chance():
    labels, groups = cases()
    found = compare_codes(np.zeros_like(labels), labels, groups, num_codes=5)
    assert found["nmi"] == 0 and found["nmi_permuted"] == 0
    assert found["accuracy"] == found["accuracy_chance"] == np.bincount(labels).max() / 600


def test_random_codes_agree_as_permuted_ones_do():
    labels, groups = cases()
    codes = np.random.default_rng(1).integers(0, 8, len(labels))
    found = compare_codes(codes, labels, groups, num_codes=8)
    assert 0 < found["nmi_permuted"] < 0.03
    assert abs(found["nmi"] - found["nmi_permuted"]) < 0.02
    assert abs(found["accuracy"] - found["accuracy_permuted"]) < 0.05


def test_fewer_codes_than_labels_and_more_are_both_measured():
    labels, groups = cases()
    fewer = compare_codes(labels // 2, labels, groups, num_codes=3)
    assert 0.5 < fewer["nmi"] < 1 and fewer["accuracy"] < 0.7
    split = 2 * labels + np.arange(len(labels)) % 2
    more = compare_codes(split, labels, groups, num_codes=10)
    assert 0.7 < more["nmi"] < 1 and 0.4 < more["accuracy"] < 0.6


def test_labels_that_are_far_apart_cost_no_memory():
    labels, groups = cases()
    assert compare_codes(labels, 10**9 * labels, groups, num_codes=5)["accuracy"] == 1


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 3), (1, 1), (5, 5)])
def test_no_other_assignment_scores_higher(shape: tuple[int, int]):
    rng = np.random.default_rng(sum(shape))
    for _ in range(20):
        scores = rng.integers(0, 9, shape)
        found = assign(scores)
        kept = np.flatnonzero(found >= 0)
        assert len(set(found[kept].tolist())) == len(kept) == min(shape)
        wide = scores if shape[0] <= shape[1] else scores.T
        best = max(
            sum(wide[row, column] for row, column in enumerate(columns))
            for columns in itertools.permutations(range(wide.shape[1]), wide.shape[0])
        )
        assert scores[kept, found[kept]].sum() == best


def test_mutual_information_is_symmetric():
    counts = np.random.default_rng(0).integers(0, 9, (4, 6))
    assert normalized_mutual_information(counts) == pytest.approx(
        normalized_mutual_information(counts.T)
    )


def test_use_of_codes():
    even = code_use(np.arange(80) % 8, 8)
    assert even["perplexity"] == pytest.approx(8) and even["top_share"] == 1 / 8
    collapsed = code_use(np.zeros(80, np.int64), 8)
    assert collapsed["perplexity"] == pytest.approx(1) and collapsed["used"] == 1
