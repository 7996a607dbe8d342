import time

import torch

from pipeline.idle import Idle

DEVICE = torch.device("cpu")


def batches(count: int, seconds: float):
    for number in range(count):
        time.sleep(seconds)
        yield number


def test_waiting_for_batches_is_idle_time():
    slow, fast = Idle(DEVICE), Idle(DEVICE)
    for _ in slow.waiting(batches(5, 0.03)):
        with slow.busy():
            time.sleep(0.001)
    share = slow.share()
    for _ in fast.waiting(batches(5, 0.0)):
        with fast.busy():
            time.sleep(0.03)
    assert share > 0.6 > 0.3 > fast.share()


def test_each_report_begins_anew():
    idle = Idle(DEVICE)
    assert list(idle.waiting(batches(3, 0.01))) == [0, 1, 2]
    assert idle.share() > 0.5
    time.sleep(0.01)
    assert idle.share() == 0
