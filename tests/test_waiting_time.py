"""How long a request will wait, from what earlier batches took."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.serve.jobs import Work
from pipeline.serve.waiting_time import WaitingTime

FRAME = Work("encode", np.zeros((3, 32, 32), np.uint8))


def step(steps: int = 1) -> Work:
    return Work("predict", np.zeros(24, np.float32), np.zeros((steps, 16), np.float32))


def test_one_slow_batch_refuses_nobody_after_it():
    waiting_time = WaitingTime(max_batch=4)
    queue = [FRAME] * 10
    for seconds in (0.1, 9.0):
        waiting_time.took([FRAME] * 4, seconds)
    assert waiting_time.before(queue, FRAME.group) == pytest.approx(2 * 0.1)
    for _ in range(3):  # a machine that has become slow
        waiting_time.took([FRAME] * 4, 3.0)
    assert waiting_time.before(queue, FRAME.group) == pytest.approx(2 * 3.0)


def test_who_shares_a_batch_waits_for_none_of_it():
    waiting_time = WaitingTime(max_batch=4)
    waiting_time.took([FRAME], 1.0)
    assert waiting_time.before([FRAME] * 3, FRAME.group) == 0.0
    assert waiting_time.before([FRAME] * 4, step().group) == pytest.approx(2.0)  # the root of four
    assert waiting_time.before([step()] * 9, FRAME.group) == 0.0  # nothing is known of these
    plan = Work("plan", np.stack([FRAME.input] * 2), steps=2, rollouts=50)
    waiting_time.took([plan], 10.0)
    assert waiting_time.before([plan, plan], FRAME.group) == pytest.approx(20.0)


def test_waiting_time_counts_steps_of_rollouts():
    waiting_time = WaitingTime(max_batch=4)
    waiting_time.took([step(3)] * 4, 0.3)
    assert waiting_time.of([step(5)] * 4) == pytest.approx(0.5)
    # two rows a step on average; of two rows nothing is known, so as of four
    assert waiting_time.of([step(9), step(3), step(3), step(3)]) == pytest.approx(0.9)
    assert waiting_time.before([step(5)] * 5, FRAME.group) == pytest.approx(1.0)
    assert waiting_time.before([step(5)] * 5, step().group) == pytest.approx(0.5)


def test_waiting_time_counts_steps_of_plans():
    frames = np.stack([FRAME.input] * 2)
    short = Work("plan", frames, steps=2, rollouts=10)
    long = Work("plan", frames, steps=20, rollouts=10)
    waiting_time = WaitingTime(max_batch=4)
    assert waiting_time.of([short]) == waiting_time.of([]) == 0.0  # nothing is known yet
    waiting_time.took([short], 3.0)
    assert waiting_time.of([long]) == pytest.approx(30.0)
    assert waiting_time.before([long, FRAME], FRAME.group) == pytest.approx(30.0)
