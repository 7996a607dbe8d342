"""What all stored actions have in common, found with one episode in memory at a time.

Letters: T steps, A numbers of an action, S sampled rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.formats.raw_episodes import RawEpisodes

SAMPLED = 10**6  # rows that percentiles are computed from


@dataclass(frozen=True)
class Survey:
    """Shape, type and values of all actions."""

    shape: tuple[int, ...]  # of one action
    dtype: np.dtype
    low: np.ndarray  # least and greatest value of each dimension, and their episodes
    high: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    sample: np.ndarray  # (S, A) some of the rows
    whole: bool  # all are whole numbers
    one_hot: bool  # all rows hold a single one and zeros, but for first rows of zeros
    zero_row: int | None  # the first episode that begins with zeros


def survey(raw: RawEpisodes) -> Survey:
    """Read all actions; ValueError names the episode whose actions do not fit the others."""
    lows, highs, samples, first = [], [], [], None
    whole = one_hot = True
    zero_row = dtype = None
    step = max(1, sum(raw.lengths) // SAMPLED)
    for number in range(len(raw.lengths)):
        values, where = raw.read(number, "actions"), raw.location(number)
        if values.ndim not in (1, 2) or values.dtype.kind not in "biuf" or values.size == 0:
            raise ValueError(
                f"{where} has actions of {values.dtype} {values.shape[1:]} a step; whole numbers "
                f"or (A,) numbers are needed"
            )
        first = values if first is None else first
        if values.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"{where} has actions of {values.shape[1:]} a step, and {raw.location(0)} of "
                f"{first.shape[1:]}; all must have one shape"
            )
        dtype = np.result_type(dtype or values.dtype, values.dtype)
        rows = values.reshape(len(values), -1)
        if rows.dtype.kind in "bf":
            rows = rows.astype(np.float32)  # as in the shards
            if not np.isfinite(rows).all():
                raise ValueError(f"{where} has actions beyond float32; scale them")
        lows.append(rows.min(0))
        highs.append(rows.max(0))
        samples.append(rows[::step])
        whole = whole and (values.dtype.kind in "biu" or bool((rows == rows.round()).all()))
        ones, zeros = (rows == 1).sum(1), (rows == 0).sum(1)
        hot = (ones == 1) & (zeros == rows.shape[1] - 1)
        if zeros[0] == rows.shape[1]:
            zero_row = number if zero_row is None else zero_row
            hot[0] = True
        one_hot = one_hot and bool(hot.all())
    assert first is not None and dtype is not None, "read_raw gives at least one episode"
    low, high = np.array(lows), np.array(highs)
    return Survey(
        first.shape[1:],
        dtype,
        low.min(0),
        high.max(0),
        low.argmin(0),
        high.argmax(0),
        np.concatenate(samples),
        whole,
        one_hot and len(first.shape) == 2 and first.shape[1] > 1,
        zero_row,
    )
