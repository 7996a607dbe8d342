import pytest
import torch

from pipeline.training import device_idle
from pipeline.training.device_idle import IdleTimer

DEVICE = torch.device("cpu")


class Clock:
    """Time that passes only where a test adds to it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(device_idle.time, "perf_counter", fake)
    return fake


def train(clock: Clock, timer: IdleTimer, waiting: float, working: float, steps: int = 5) -> None:
    def batches():
        for number in range(steps):
            clock.now += waiting
            yield number

    for _ in timer.time_batches(batches()):
        with timer.busy():
            clock.now += working


def test_waiting_for_batches_is_idle_time(clock):
    timer = IdleTimer(DEVICE)
    train(clock, timer, waiting=3.0, working=1.0)
    assert timer.fraction() == pytest.approx(0.75)


def test_each_call_counts_from_the_one_before(clock):
    timer = IdleTimer(DEVICE)
    train(clock, timer, waiting=1.0, working=0.0)
    assert timer.fraction() == 1
    train(clock, timer, waiting=0.0, working=1.0)
    assert timer.fraction() == 0


def test_batches_are_given_as_they_come():
    assert list(IdleTimer(DEVICE).time_batches(range(3))) == [0, 1, 2]
