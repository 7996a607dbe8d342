import pytest
import torch
from torch import nn

from pipeline.training import auto_compile
from pipeline.training.auto_compile import TRIAL_STEPS, AutoCompile


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def steps(monkeypatch, eager: float, compiled: float, ahead: int) -> tuple[AutoCompile, list[str]]:
    """Take steps that last as long as they are said to."""
    clock, said = Clock(), []
    monkeypatch.setattr(auto_compile, "cpp_compiler", lambda: "g++")
    monkeypatch.setattr(auto_compile.time, "perf_counter", clock)
    module = nn.Linear(1, 1)
    trial = AutoCompile(module, "auto", said.append)
    for left in range(ahead, ahead - 3 * TRIAL_STEPS, -1):
        with trial.time_step(left):
            clock.now += compiled if trial.is_compiled else eager
    return trial, said


def test_compiling_is_kept_where_steps_are_faster(monkeypatch):
    trial, said = steps(monkeypatch, eager=1.0, compiled=0.5, ahead=10_000)
    assert trial.is_compiled and "500 ms instead of 1000 ms" in said[0] and said[0].endswith("kept")


def test_compiling_is_given_up_where_they_are_not(monkeypatch):
    trial, said = steps(monkeypatch, eager=1.0, compiled=1.1, ahead=10_000)
    assert not trial.is_compiled and said[0].endswith("given up")


def test_a_short_run_is_not_compiled(monkeypatch):
    trial, said = steps(monkeypatch, eager=1.0, compiled=0.1, ahead=200)
    assert not trial.is_compiled and said == ["compile: not tried, 191 s are left"]


def test_without_auto_nothing_is_timed():
    trial = AutoCompile(nn.Linear(1, 1), "no", print)
    with trial.time_step(10**6):
        pass
    assert not trial.is_compiled and not trial._eager_seconds


def test_without_a_compiler_it_is_said(monkeypatch):
    monkeypatch.setattr(auto_compile.shutil, "which", lambda name: None)
    monkeypatch.setattr(auto_compile.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"--train.compile yes needs a C\+\+ compiler"):
        AutoCompile(nn.Linear(1, 1), "yes", print)
    said: list[str] = []
    trial = AutoCompile(nn.Linear(1, 1), "auto", said.append)
    with trial.time_step(10**6):
        pass
    assert not trial.is_compiled and not trial._eager_seconds
    assert len(said) == 1 and said[0].startswith("compile: not tried, there is no g++")


@pytest.mark.skipif(not auto_compile.cpp_compiler(), reason="needs a C++ compiler")
def test_a_compiled_loss_is_the_loss():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    x = torch.randn(5, 3)
    before = module(x)
    AutoCompile(module, "yes", print)
    assert torch.allclose(module(x), before, atol=1e-6)
    assert list(module.state_dict()) == ["0.weight", "0.bias"]
