"""How much codes that a model made up by itself say about labels that it was not given.

Letters: n cases, C codes, L labels, G groups of cases, R resamples.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluation.measures.intervals import confidence_interval

NUM_PERMUTATIONS = 100
NUM_RESAMPLES = 1000


def normalized_mutual_information(counts: np.ndarray) -> np.ndarray:
    """Mutual information over the mean of the two entropies: counts (..., C, L) -> (...), 0 to 1.

    0 where either is always the same (Strehl and Ghosh 2002, with the arithmetic mean).
    """
    joint = counts / counts.sum((-2, -1), keepdims=True)
    of_codes, of_labels = (_entropy(joint.sum(axis)) for axis in (-1, -2))
    information = of_codes + of_labels - _entropy(joint.reshape(*joint.shape[:-2], -1))
    mean = (of_codes + of_labels) / 2
    return np.where(mean > 1e-12, information / np.maximum(mean, 1e-12), 0.0).clip(0, 1)


def assign(scores: np.ndarray) -> np.ndarray:
    """Give each code a label of its own such that the sum of scores is the highest: (C, L) -> (C,)
    int64, -1 for a code without one (the Hungarian method, Kuhn 1955; O(C L min(C, L)))."""
    if scores.shape[0] > scores.shape[1]:
        labels = np.full(scores.shape[0], -1)
        of_label = assign(scores.T)
        labels[of_label] = np.arange(len(of_label))
        return labels
    cost = -scores.astype(np.float64)
    rows, columns = cost.shape
    row_price, column_price = np.zeros(rows + 1), np.zeros(columns + 1)
    row_of = np.full(columns + 1, rows)  # the last column and row are none
    for row in range(rows):
        row_of[columns], column = row, columns
        lowest = np.full(columns + 1, np.inf)
        came_from = np.full(columns + 1, columns)
        used = np.zeros(columns + 1, bool)
        while row_of[column] != rows:
            used[column] = True
            reduced = cost[row_of[column]] - row_price[row_of[column]] - column_price[:columns]
            better = ~used[:columns] & (reduced < lowest[:columns])
            lowest[:columns][better] = reduced[better]
            came_from[:columns][better] = column
            nearest = int(np.where(used[:columns], np.inf, lowest[:columns]).argmin())
            step = lowest[nearest]
            row_price[row_of[used]] += step
            column_price[used] -= step
            lowest[~used] -= step
            column = nearest
        while column != columns:
            row_of[column] = row_of[came_from[column]]
            column = came_from[column]
    labels = np.full(rows, -1)
    taken = row_of[:columns] < rows
    labels[row_of[:columns][taken]] = np.flatnonzero(taken)
    return labels


def compare_codes(
    codes: np.ndarray, labels: np.ndarray, groups: np.ndarray, num_codes: int, seed: int = 0
) -> dict[str, Any]:
    """Compare codes (n,), of `num_codes`, with labels (n,), each a whole number.

    `nmi` and `accuracy`, the share of cases with the label that the best assignment of one label to
    each code says; intervals by a bootstrap over groups. `permuted` is the mean of each over
    permutations of the codes, which is above 0 for few cases; `chance`, the accuracy of always
    saying the commonest label.
    """
    label_values, labels = np.unique(labels, return_inverse=True)
    group_values, groups = np.unique(groups, return_inverse=True)
    shape = (num_codes, len(label_values))
    by_group = np.zeros((len(group_values), *shape))
    np.add.at(by_group, (groups, codes, labels), 1)
    counts = by_group.sum(0)
    rng = np.random.default_rng(seed)
    permuted = []
    for _ in range(NUM_PERMUTATIONS):
        table = np.zeros(shape)
        np.add.at(table, (rng.permutation(codes), labels), 1)
        permuted.append((float(normalized_mutual_information(table)), _accuracy(table)))
    permuted_nmi, permuted_accuracy = np.mean(permuted, 0)
    return {
        "n": len(codes),
        "sources": len(group_values),
        "labels": len(label_values),
        "nmi": float(normalized_mutual_information(counts)),
        "nmi_permuted": float(permuted_nmi),
        "accuracy": _accuracy(counts),
        "accuracy_permuted": float(permuted_accuracy),
        "accuracy_chance": float(counts.sum(0).max() / len(codes)),
        **_intervals(by_group, rng),
    }


def code_use(codes: np.ndarray, num_codes: int) -> dict[str, Any]:
    """Say how codes (n,) are used: `perplexity`, from 1 to `num_codes`, the `top_share` of the
    commonest one, and how many are `used`."""
    share = np.bincount(codes, minlength=num_codes) / len(codes)
    return {
        "num_codes": num_codes,
        "used": int((share > 0).sum()),
        "perplexity": float(np.exp(_entropy(share))),
        "top_share": float(share.max()),
        "frequencies": share.tolist(),
    }


def _intervals(by_group: np.ndarray, rng: np.random.Generator) -> dict[str, float | None]:
    names = ("nmi_low", "nmi_high", "accuracy_low", "accuracy_high")
    if len(by_group) < 2:
        return dict.fromkeys(names)
    drawn = rng.multinomial(len(by_group), np.full(len(by_group), 1 / len(by_group)), NUM_RESAMPLES)
    assigned = assign(by_group.sum(0))
    right = np.maximum(by_group[:, np.arange(len(assigned)), assigned], 0)[:, assigned >= 0].sum(1)
    sizes = by_group.sum((1, 2))
    accuracy = (drawn @ right) / (drawn @ sizes)
    # a resample at a time: all tables at once would take much memory
    nmi = [float(normalized_mutual_information(np.tensordot(d, by_group, 1))) for d in drawn]
    low, high = confidence_interval(np.stack([nmi, accuracy], 1))
    return dict(zip(names, (low[0], high[0], low[1], high[1]), strict=True))


def _accuracy(counts: np.ndarray) -> float:
    assigned = assign(counts)
    kept = assigned >= 0
    return float(counts[np.flatnonzero(kept), assigned[kept]].sum() / counts.sum())


def _entropy(shares: np.ndarray) -> np.ndarray:
    """In nats, over the last axis."""
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(-1)
