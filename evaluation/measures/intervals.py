"""95% confidence intervals of shares and of means.

Letters: n cases, K figures of each case, G groups of cases, R resamples.
"""

from __future__ import annotations

import math

import numpy as np

Z = 1.959964  # 95% of a normal distribution lie within this many standard deviations


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Compute Wilson's interval of a share (Wilson 1927), valid near 0 and 1 and for small n."""
    if n == 0:
        return 0.0, 1.0
    rate = successes / n
    center = (rate + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half_width = Z / (1 + Z**2 / n) * math.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2))
    return max(0.0, center - half_width), min(1.0, center + half_width)


def bootstrap_means(
    values: np.ndarray, groups: np.ndarray | None = None, num_resamples: int = 2000, seed: int = 0
) -> np.ndarray:
    """Average `values` (n, K) over whole groups drawn with replacement: (R, K).

    groups: (n,) what each case belongs to (clips of one episode are not independent); each case
    is its own group where it is None.  With one group all are NaN.
    """
    groups = np.arange(len(values)) if groups is None else groups
    _, group_index = np.unique(groups, return_inverse=True)
    num_groups = int(group_index.max()) + 1
    sums = np.zeros((num_groups, values.shape[1]))
    np.add.at(sums, group_index, values)
    sizes = np.bincount(group_index, minlength=num_groups)
    if num_groups == 1:
        return np.full((num_resamples, values.shape[1]), np.nan)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=num_resamples)
    return (counts @ sums) / (counts @ sizes)[:, None]


def confidence_interval(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the 2.5% and 97.5% quantiles of each figure: (R, K) -> (K,), (K,)."""
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return low, high


def bootstrap(
    values: np.ndarray, groups: np.ndarray | None = None, seed: int = 0
) -> tuple[float, float]:
    """Compute the interval of the mean of (n,) values by the percentile bootstrap over groups."""
    low, high = confidence_interval(
        bootstrap_means(np.asarray(values, float)[:, None], groups, seed=seed)
    )
    return float(low[0]), float(high[0])
