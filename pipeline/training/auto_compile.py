"""Whether compiling a loss pays for its start-up: timed, not assumed."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pipeline.training.train_config import CompileMode

TRIAL_STEPS = 10  # steps that are timed each way; the first of each are left out
NO_COMPILER = "there is no g++ or clang++ here; install one (Debian, Ubuntu: apt-get install g++)"
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
        """switched: called when later steps are to be taken the other way."""
        self.module, self.log_line, self.on_switch = module, log_line, on_switch
        available = torch.cuda.is_available() or cpp_compiler() is not None
        self._timing = mode == "auto" and available
        self._eager_seconds: list[float] = []
        self._compiled_seconds: list[float] = []
        if mode == "yes" and not available:
            raise ValueError(f"--{flag_prefix}.compile yes needs a C++ compiler, and {NO_COMPILER}")
        if mode == "yes":
            module.compile()
        if mode == "auto" and not available:
            log_line(f"compile: not tried, {NO_COMPILER}")

    @property
    def is_compiled(self) -> bool:
        return self.module._compiled_call_impl is not None

    @contextmanager
    def time_step(self, remaining_steps: int) -> Iterator[None]:
        """Take a step in here; `ahead` more come after it."""
        if not self._timing:
            yield
            return
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
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


def cpp_compiler() -> str | None:
    named = os.environ.get("CXX", "")
    return next(
        (found for name in (named, "g++", "clang++") if (found := shutil.which(name))),
        None,
    )
