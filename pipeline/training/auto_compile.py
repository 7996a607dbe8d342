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

from pipeline.training.train_config import Compile

TRIAL = 10  # steps that are timed each way; the first of each are left out
MISSING = "there is no g++ or clang++ here; install one (Debian, Ubuntu: apt-get install g++)"
LONG = 600.0  # seconds of steps ahead, below which it is not tried: start-up takes a minute or two


class Compiling:
    """Compiles `module` at once, never, or once it has been faster in the steps themselves."""

    def __init__(
        self,
        module: nn.Module,
        wish: Compile,
        say: Callable[[str], None],
        switched: Callable[[], None] = lambda: None,
        flags: str = "train",
    ) -> None:
        """switched: called when later steps are to be taken the other way."""
        self.module, self.say, self.switched = module, say, switched
        able = torch.cuda.is_available() or cpp_compiler() is not None
        self._trying = wish == "auto" and able
        self._eager: list[float] = []
        self._compiled: list[float] = []
        if wish == "yes" and not able:
            raise ValueError(f"--{flags}.compile yes needs a C++ compiler, and {MISSING}")
        if wish == "yes":
            module.compile()
        if wish == "auto" and not able:
            say(f"compile: not tried, {MISSING}")

    @property
    def on(self) -> bool:
        return self.module._compiled_call_impl is not None

    @contextmanager
    def timed(self, ahead: int) -> Iterator[None]:
        """Take a step in here; `ahead` more come after it."""
        if not self._trying:
            yield
            return
        began = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        (self._compiled if self.on else self._eager).append(time.perf_counter() - began)
        if not self.on and len(self._eager) == TRIAL:
            self._begin(ahead)
        elif self.on and len(self._compiled) == TRIAL:
            self._decide()

    def _begin(self, ahead: int) -> None:
        left = ahead * _usual(self._eager)
        if left < LONG:
            self._trying = False
            self.say(f"compile: not tried, {left:.0f} s are left")
        else:
            self.module.compile()
            self.switched()

    def _decide(self) -> None:
        self._trying = False
        eager, compiled = _usual(self._eager), _usual(self._compiled)
        kept = "kept" if compiled < eager else "given up"
        if compiled >= eager:
            self.module._compiled_call_impl = None
            self.switched()
        self.say(
            f"compile: a step takes {1000 * compiled:.0f} ms instead of {1000 * eager:.0f} ms, "
            f"after {self._compiled[0]:.0f} s of start-up; {kept}"
        )


def _usual(seconds: list[float]) -> float:
    return statistics.median(seconds[TRIAL // 2 :])


def cpp_compiler() -> str | None:
    named = os.environ.get("CXX", "")
    return next(
        (found for name in (named, "g++", "clang++") if (found := shutil.which(name))), None
    )
