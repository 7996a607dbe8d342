"""Whether compiling works here, and whether it pays for its start-up: tried, not assumed."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import nn

from pipeline.training.train_config import CompileMode

TRIAL_STEPS = 10  # steps that are timed each way; the first of each are left out
NO_COMPILER = "there is no g++ or clang++ here; install one (Debian, Ubuntu: apt-get install g++)"
MAX_MESSAGE = 200  # letters of a compiler's error
MIN_TRIAL_SECONDS = (
    600.0  # seconds of steps ahead, below which it is not tried: start-up takes a minute or two
)


class AutoCompile:
    """Compiles `module` at once, never, or once it has been faster in the steps themselves."""

    def __init__(
        self,
        module: nn.Module,
        mode: CompileMode,
        log_line: Callable[[str], None],
        on_switch: Callable[[], None] = lambda: None,
        flag_prefix: str = "train",
    ) -> None:
        """on_switch: called when later steps are to be taken the other way."""
        self.module, self.log_line, self.on_switch = module, log_line, on_switch
        self._timing = mode == "auto"
        self._eager_seconds: list[float] = []
        self._compiled_seconds: list[float] = []
        self._device = next((p.device for p in module.parameters()), torch.device("cpu"))
        if mode == "yes":
            if problem := compile_problem(self._device):
                raise ValueError(f"--{flag_prefix}.compile yes cannot compile here: {problem}")
            module.compile()
        elif self._timing and _lacks_compiler(self._device):
            self._timing = False
            log_line(f"compile: not tried, {NO_COMPILER}")

    @property
    def is_compiled(self) -> bool:
        return self.module._compiled_call_impl is not None

    @contextmanager
    def time_step(self, remaining_steps: int) -> Iterator[None]:
        """Take a step in here, of the last turn, as are the `remaining_steps` after it."""
        if not self._timing:
            yield
            return
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        (self._compiled_seconds if self.is_compiled else self._eager_seconds).append(
            time.perf_counter() - start
        )
        if not self.is_compiled and len(self._eager_seconds) == TRIAL_STEPS:
            self._start_trial(remaining_steps)
        elif self.is_compiled and len(self._compiled_seconds) == TRIAL_STEPS:
            self._decide()

    def _start_trial(self, remaining_steps: int) -> None:
        remaining_seconds = remaining_steps * _median(self._eager_seconds)
        if remaining_seconds < MIN_TRIAL_SECONDS:
            self._timing = False
            self.log_line(f"compile: not tried, {remaining_seconds:.0f} s are left")
        elif problem := compile_problem(self._device):
            self._timing = False
            self.log_line(f"compile: not tried, {problem}")
        else:
            self.module.compile()
            self.on_switch()

    def _decide(self) -> None:
        self._timing = False
        eager_seconds, compiled_seconds = (
            _median(self._eager_seconds),
            _median(self._compiled_seconds),
        )
        verdict = "kept" if compiled_seconds < eager_seconds else "given up"
        if compiled_seconds >= eager_seconds:
            self.module._compiled_call_impl = None
            self.on_switch()
        self.log_line(
            f"compile: a step takes {1000 * compiled_seconds:.0f} ms instead of "
            f"{1000 * eager_seconds:.0f} ms, "
            f"after {self._compiled_seconds[0]:.0f} s of start-up; {verdict}"
        )


def _median(seconds: list[float]) -> float:
    return statistics.median(seconds[TRIAL_STEPS // 2 :])


def compile_problem(device: torch.device) -> str | None:
    """Say in one line why torch.compile fails on a device, tried on a sum; None where it works."""
    return NO_COMPILER if _lacks_compiler(device) else _try_compiling(device)


def _lacks_compiler(device: torch.device) -> bool:
    return device.type != "cuda" and cpp_compiler() is None


@cache
def _try_compiling(device: torch.device) -> str | None:
    try:
        torch.compile(lambda x: x + x.sum(), dynamic=False)(torch.ones(8, device=device))
    except Exception as problem:  # of any kind: by compilers, Triton, or a missing header
        return f"{_first_error(problem)}; install what it misses, or do not compile"
    return None


def _first_error(problem: Exception) -> str:
    """The line of a compiler's report that names the error, or the first line of the exception."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    named = [line for line in lines if re.search(r"\b(fatal |internal )?error\b:", line)]
    return (named or lines or [type(problem).__name__])[0][:MAX_MESSAGE]


def cpp_compiler() -> str | None:
    """Return the C++ compiler that PyTorch will call, if there is one."""
    named = os.environ.get("CXX", "")
    return next(
        (found for name in (named, "g++", "clang++") if (found := shutil.which(name))),
        None,
    )
