import pytest
import torch
from torch import nn

from pipeline.inference.aot_inductor import pick_compile_fn
from pipeline.training import auto_compile
from pipeline.training.auto_compile import TRIAL_STEPS, AutoCompile


class Clock:
    """Time that passes only where a test adds to it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def take_steps(
    monkeypatch, eager: float, compiled: float, remaining: int, problem: str | None = None
) -> tuple[AutoCompile, list[str]]:
    """Take steps of so many seconds each; return the trial, and the lines that it logged."""
    clock, lines = Clock(), []
    monkeypatch.setattr(auto_compile, "cpp_compiler", lambda: "g++")
    monkeypatch.setattr(auto_compile, "compile_problem", lambda device: problem)
    monkeypatch.setattr(auto_compile.time, "perf_counter", clock)
    module = nn.Linear(1, 1)
    trial = AutoCompile(module, "auto", lines.append)
    for left in range(remaining, remaining - 3 * TRIAL_STEPS, -1):
        with trial.time_step(left):
            clock.now += compiled if trial.is_compiled else eager
    return trial, lines


def test_compiling_is_kept_where_steps_are_faster(monkeypatch):
    trial, lines = take_steps(monkeypatch, eager=1.0, compiled=0.5, remaining=10_000)
    assert trial.is_compiled
    assert "500 ms instead of 1000 ms" in lines[0] and lines[0].endswith("kept")


def test_compiling_is_given_up_where_steps_are_not_faster(monkeypatch):
    trial, lines = take_steps(monkeypatch, eager=1.0, compiled=1.1, remaining=10_000)
    assert not trial.is_compiled and lines[0].endswith("given up")


def test_a_short_run_is_not_compiled(monkeypatch):
    trial, lines = take_steps(monkeypatch, eager=1.0, compiled=0.1, remaining=200)
    assert not trial.is_compiled and lines == ["compile: not tried, 191 s are left"]


def test_without_auto_nothing_is_timed():
    trial = AutoCompile(nn.Linear(1, 1), "no", print)
    with trial.time_step(10**6):
        pass
    assert not trial.is_compiled and not trial._eager_seconds


def test_a_missing_compiler_is_logged_or_refused(monkeypatch):
    monkeypatch.setattr(auto_compile.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"--train.compile yes cannot compile here: there is no g"):
        AutoCompile(nn.Linear(1, 1), "yes", print)
    lines: list[str] = []
    trial = AutoCompile(nn.Linear(1, 1), "auto", lines.append)
    with trial.time_step(10**6):
        pass
    assert not trial.is_compiled and not trial._eager_seconds
    assert len(lines) == 1 and lines[0].startswith("compile: not tried, there is no g++")


def test_a_compiler_that_cannot_compile_is_logged_in_one_line_and_not_tried(monkeypatch):
    trial, lines = take_steps(monkeypatch, 1.0, 0.5, remaining=10_000, problem="no omp.h")
    assert not trial.is_compiled and lines == ["compile: not tried, no omp.h"]


def test_a_compiler_that_cannot_compile_is_refused_in_one_line(monkeypatch):
    report = "Command:\n g++ a.cpp\nOutput:\n a.cpp:1:9: fatal error: omp.h: No such file\n" * 30

    def fail(*_: object, **__: object):
        raise RuntimeError(report)

    monkeypatch.setattr(auto_compile, "cpp_compiler", lambda: "g++")
    monkeypatch.setattr(auto_compile.torch, "compile", fail)
    auto_compile._try_compiling.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"a.cpp:1:9: fatal error: omp.h") as problem:
            AutoCompile(nn.Linear(1, 1), "yes", print)
        with pytest.raises(ValueError, match=r"--compile cannot compile here: a.cpp:1:9: fatal"):
            pick_compile_fn(torch.device("cpu"))
    finally:
        auto_compile._try_compiling.cache_clear()
    assert "\n" not in str(problem.value) and "do not compile" in str(problem.value)


@pytest.mark.skipif(not auto_compile.cpp_compiler(), reason="needs a C++ compiler")
def test_a_compiled_loss_is_the_loss():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    x = torch.randn(5, 3)
    before = module(x)
    AutoCompile(module, "yes", print)
    assert torch.allclose(module(x), before, atol=1e-6)
    assert list(module.state_dict()) == ["0.weight", "0.bias"]
