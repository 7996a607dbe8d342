"""Steps of a model compiled ahead of time for a CPU: once on a machine, and loaded after that.

A call goes from its first product to its last without Python (AOTInductor), and weights lie as the
products that were fastest here want them.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor.cpu_vec_isa import pick_vec_isa
from torch._inductor.runtime.cache_dir_utils import cache_dir

from models.compiler import Compiler
from pipeline.compiling import MISSING, cpp_compiler
from pipeline.nested import put_together, taken_apart

HOW = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}
Runner = Callable[[list[Tensor]], list[Tensor]]


def compiler_for(device: torch.device) -> Compiler:
    """Give what compiles steps of a world there: torch.compile on a GPU, whose steps are recorded
    anyway.  ValueError where a CPU's needs a C++ compiler and there is none."""
    if device.type != "cpu":
        return lambda module, function: torch.compile(function, dynamic=False)
    if cpp_compiler() is None:
        raise ValueError(f"compiled steps need a C++ compiler, and {MISSING}")
    return Exported


class Exported:
    """A function of nested tensors, compiled for every set of shapes that they come in.

    It has to be a function of what it is given and of the module's weights, which are those of the
    first call: this is for models that learn no more.  What it writes into its tensors is written.
    Where a gradient is asked for it is the function itself.
    """

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        """function: of `module`, such as a method."""
        self.module, self.function = module, function
        self._known: dict[Any, tuple[Runner, Any]] = {}

    def __call__(self, *given: Any) -> Any:
        tensors: list[Tensor] = []
        form = taken_apart(given, tensors)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return self.function(*given)
        # rows that lie in the same place are read from beyond it
        tensors = [t.contiguous() if 0 in t.stride() else t for t in tensors]
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        key = (form, kind, *((t.shape, t.stride(), t.dtype) for t in tensors))
        if key not in self._known:
            self._known[key] = self._compile(form, tensors, kind, str(key))
        run, found = self._known[key]
        return put_together(found, iter(run(tensors)))

    def _compile(
        self, form: Any, tensors: list[Tensor], kind: torch.dtype | None, key: str
    ) -> tuple[Runner, Any]:
        forms: list[Any] = []

        def flat(*tensors: Tensor) -> list[Tensor]:
            outputs: list[Tensor] = []
            with torch.autocast("cpu", dtype=kind, enabled=kind is not None):
                result = self.function(*put_together(form, iter(tensors)))
            forms.append(taken_apart(result, outputs))
            return outputs

        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PyTorch against itself
            # tensors of inference cannot be followed
            examples = tuple(
                torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).copy_(t) for t in tensors
            )
            program = torch.export.export(_Whole(self.module, flat), examples)
            package = torch._inductor.aoti_load_package(str(_package(program, key)))
        return package.loader.run, forms[-1]


class _Whole(nn.Module):
    """A function as a module that has the weights which it uses."""

    def __init__(self, module: nn.Module, function: Callable[..., list[Tensor]]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        return self.function(*tensors)


def _package(program: Any, key: str) -> Path:
    """Compile a program, unless this machine has done so before."""
    made_for = f"{torch.__version__} {pick_vec_isa()} {torch.get_num_threads()} threads"
    seen = hashlib.sha256(f"{made_for} {HOW} {key} {program}".encode())
    for name, weight in [*program.state_dict.items(), *program.constants.items()]:
        seen.update(f"{name} {weight.dtype} {weight.shape} {weight.stride()}".encode())
        seen.update(weight.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    folder = Path(cache_dir()) / "dreamstage"
    path = folder / f"{seen.hexdigest()}.pt2"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # what was tried, and how long it took, goes to the errors otherwise
        with tempfile.TemporaryDirectory(dir=folder) as made, redirect_stderr(StringIO()):
            whole = torch._inductor.aoti_compile_and_package(
                program, package_path=f"{made}/it.pt2", inductor_configs=dict(HOW)
            )
            os.replace(whole, path)
    return path
