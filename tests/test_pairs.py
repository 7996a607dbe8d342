"""Races are interleaved, ratios are paired, and incorrect results are not timed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.__main__ import safe_rows
from bench.races import pairs
from bench.races.correctness import check_against_definition, check_codes
from bench.races.pairs import (
    Incorrect,
    Options,
    Row,
    compare,
    missing_row,
    paired_ratio,
    race,
    value_row,
)
from bench.races.table import format_row


def test_a_race_interleaves_and_every_runner_is_first_in_turn():
    calls: list[str] = []
    runners = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = race(runners, rounds=6, warmup=2)
    assert calls[:6] == ["a", "a", "b", "b", "c", "c"]  # warmup
    rounds = ["".join(calls[n : n + 3]) for n in range(6, len(calls), 3)]
    assert rounds == ["abc", "bca", "cab", "abc", "bca", "cab"]
    assert {name: len(taken) for name, taken in seconds.items()} == dict.fromkeys("abc", 6)


def test_repeats_are_calls_within_a_turn():
    calls: list[str] = []
    runners = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    race(runners, rounds=1, warmup=0, repeats=3)
    assert calls == ["a", "a", "a", "b", "b", "b"]


def test_a_runner_against_itself_is_no_faster_on_a_machine_that_gets_slower(monkeypatch):
    now = 0.0

    def call():
        nonlocal now
        now += 1.0 + now / 1000

    monkeypatch.setattr(pairs.time, "perf_counter", lambda: now)
    seconds = race({"ours": call, "same": call}, rounds=40, repeats=20)
    (row,) = compare("area", "product", seconds, {}, unit="us")
    assert row.ratio is not None and row.low is not None and row.high is not None
    assert seconds["ours"][-1] > 2 * seconds["ours"][0]
    assert row.low <= 1 <= row.high and abs(row.ratio - 1) < 0.03


@pytest.mark.parametrize("truth", [0.5, 1.0, 20.0])
def test_the_interval_covers_a_known_ratio_under_other_load(truth):
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        busy = random.lognormal(0, 1, 20)  # hits both of a round alike
        noise = random.lognormal(0, 0.05, (2, 20))
        ratio, low, high = paired_ratio(truth * busy * noise[0], busy * noise[1], num_resamples=500)
        assert abs(ratio / truth - 1) < 0.1
        covered += low <= truth <= high
    assert covered >= 85


def test_rows_have_units_targets_and_whether_they_passed():
    seconds = {"ours": [0.002] * 10, "slow": [0.006] * 10, "fast": [0.001] * 10}
    slow, fast = compare("area", "work", seconds, {"slow": (2.0, 4.0), "fast": (1.0, None)})
    assert (slow.ours, slow.theirs, slow.unit, slow.rounds) == (2.0, 6.0, "ms", 10)
    assert slow.ratio == pytest.approx(3) and slow.passed is True
    assert fast.ratio == pytest.approx(0.5) and fast.passed is False
    (rate, _) = compare("area", "work", seconds, {}, unit="frames/s", amount=64)
    assert rate.ours == pytest.approx(32_000) and rate.passed is None


def test_targets_without_a_ratio_are_upper_for_times_and_lower_for_rates():
    assert value_row("area", "decide", "ms", 12.0, target=20).passed is True
    assert value_row("area", "decide", "ms", 22.0, target=20).passed is False
    assert value_row("area", "play", "frames/s", 40.0, target=30).passed is True
    assert value_row("area", "play", "frames/s", 20.0, target=30).passed is False


def test_a_missing_peer_is_a_row_with_its_install_command():
    row = missing_row("area", "work", "Their-Package", "their-package")
    assert row.ratio is None and "not measured: pip install their-package" in format_row(row)


def test_an_incorrect_result_has_a_row_and_no_time(monkeypatch):
    def rows(options):
        check_against_definition(
            "twice", lambda x: 2 * x + 1e-3, lambda x: 2 * x, [torch.randn(7)], grads=True
        )
        yield value_row("broken", "twice", "ms", 1.0)

    monkeypatch.setattr("bench.areas.roofline.rows", rows)
    (row,) = safe_rows("roofline", Options())
    assert row.ours is None and row.ratio is None and row.note.startswith("incorrect: twice")
    assert " ms" not in format_row(row)


def test_incorrect_gradients_are_found_as_well_as_incorrect_values():
    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, *grads):
            return 1.99 * grads[0]

    x = [torch.randn(33)]
    check_against_definition("twice", lambda x: 2 * x, lambda x: x + x, x, grads=True)
    check_against_definition("twice", Off.apply, lambda x: x + x, x, grads=False)
    with pytest.raises(Incorrect, match="result 1"):
        check_against_definition("twice", Off.apply, lambda x: x + x, x, grads=True)
    with pytest.raises(Incorrect):
        check_against_definition("nan", lambda x: x * float("nan"), lambda x: x, x, grads=False)


def test_a_code_that_is_not_the_nearest_is_incorrect():
    vectors, codebook = torch.randn(50, 8), torch.randn(9, 8)
    codes = torch.cdist(vectors, codebook).argmin(1)
    check_codes("nearest_code", codes, vectors, codebook)
    with pytest.raises(Incorrect):
        check_codes("nearest_code", (codes + 1) % 9, vectors, codebook)


def test_a_row_of_the_table_keeps_long_names_and_whether_it_passed():
    row = Row("area", "a" * 90, "b" * 60, "ms", 1.0, 3.0, 3.0, 2.5, 3.5, 10, 4.0, 6.0, "a note")
    text = format_row(row)
    assert "a" * 90 in text and "b" * 60 in text and "3x [2.5, 3.5]" in text
    assert text.endswith("- a note") and "+ a note" in format_row(replace(row, target=2.0))
