import pytest
import torch

from pipeline.training import device_idle
from pipeline.training.device_idle import IdleTimer

DEVICE = torch.device("cpu")


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    told = Clock()
    monkeypatch.setattr(device_idle.time, "perf_counter", told)
    return told


def train(clock: Clock, idle: IdleTimer, waiting: float, working: float, steps: int = 5) -> None:
    def batches():
        for number in range(steps):
            clock.now += waiting
            yield number

    for _ in idle.time_batches(batches()):
        with idle.busy():
            clock.now += working


def test_waiting_for_batches_is_idle_time(clock):
    idle = IdleTimer(DEVICE)
    train(clock, idle, time_batches=3.0, working=1.0)
    assert idle.fraction() == pytest.approx(0.75)


def test_each_report_begins_anew(clock):
    idle = IdleTimer(DEVICE)
    train(clock, idle, time_batches=1.0, working=0.0)
    assert idle.fraction() == 1
    train(clock, idle, time_batches=0.0, working=1.0)
    assert idle.fraction() == 0


def test_batches_are_given_as_they_come():
    assert list(IdleTimer(DEVICE).time_batches(range(3))) == [0, 1, 2]
