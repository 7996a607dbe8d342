import pytest
import torch

from pipeline.training import device_idle
from pipeline.training.device_idle import Idle

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


def train(clock: Clock, idle: Idle, waiting: float, working: float, steps: int = 5) -> None:
    def batches():
        for number in range(steps):
            clock.now += waiting
            yield number

    for _ in idle.waiting(batches()):
        with idle.busy():
            clock.now += working


def test_waiting_for_batches_is_idle_time(clock):
    idle = Idle(DEVICE)
    train(clock, idle, waiting=3.0, working=1.0)
    assert idle.share() == pytest.approx(0.75)


def test_each_report_begins_anew(clock):
    idle = Idle(DEVICE)
    train(clock, idle, waiting=1.0, working=0.0)
    assert idle.share() == 1
    train(clock, idle, waiting=0.0, working=1.0)
    assert idle.share() == 0


def test_batches_are_given_as_they_come():
    assert list(Idle(DEVICE).waiting(range(3))) == [0, 1, 2]
