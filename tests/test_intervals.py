"""95% intervals of shares and means."""

import numpy as np
import pytest

from evaluation.measures.intervals import bootstrap, bootstrap_means, wilson


def test_wilson_gives_the_published_interval_of_48_in_50():
    low, high = wilson(48, 50)
    assert (round(100 * low, 1), round(100 * high, 1)) == (86.5, 98.9)


def test_wilson_stays_within_0_and_1_and_narrows_with_n():
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == pytest.approx(1)
    assert wilson(0, 10)[1] > 0.2 > wilson(0, 100)[1] > 0
    assert wilson(0, 0) == (0.0, 1.0)


def test_nine_in_ten_bootstrap_intervals_or_more_contain_the_mean():
    rng = np.random.default_rng(0)
    contained = 0
    for seed in range(100):
        low, high = bootstrap(rng.normal(3, 1, 60), seed=seed)
        contained += low <= 3 <= high
    assert contained >= 90


def test_cases_of_one_group_count_as_one():
    values = np.repeat([0.0, 1.0, 2.0, 3.0], 50)
    groups = np.repeat([0, 1, 2, 3], 50)
    alone, grouped = bootstrap(values), bootstrap(values, groups)
    assert grouped[1] - grouped[0] > 3 * (alone[1] - alone[0])


def test_metrics_of_one_case_are_resampled_together():
    values = np.random.default_rng(1).normal(size=(30, 1))
    means = bootstrap_means(np.hstack([values, values + 5]))
    assert means[:, 1] - means[:, 0] == pytest.approx(5)


def test_one_group_has_no_interval():
    low, high = bootstrap(np.arange(9.0), np.zeros(9))
    assert np.isnan(low) and np.isnan(high)
