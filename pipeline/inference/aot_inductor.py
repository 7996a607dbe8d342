"""Compile a model's steps ahead of time for a CPU with AOTInductor, once per machine.

A call runs without Python from its first product to its last, and weights are laid out as the
fastest products on this machine read them.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor.cpu_vec_isa import pick_vec_isa
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from tqdm import tqdm

from models.method import CompileFn
from pipeline.pytree import TreeSpec, flatten, unflatten
from pipeline.training.auto_compile import compile_problem

INDUCTOR_CONFIG = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}
MAX_ROWS = 2**62  # rows, where there is no bound
MAX_CACHE_BYTES = 2 * 2**30  # of all packages; those of one world take some MB to 200 MB


def pick_compile_fn(device: torch.device) -> CompileFn:
    """Return the compiler of a world's steps: AotCompiled on a CPU, torch.compile elsewhere.

    ValueError where compiling fails, as without a C++ compiler.
    """
    if problem := compile_problem(device):
        raise ValueError(f"--compile cannot compile here: {problem}")
    if device.type != "cpu":
        return lambda module, function: torch.compile(function, dynamic=False)
    return AotCompiled


class AotCompiled:
    """A function of nested tensors (pipeline/pytree.py), compiled once per structure and shapes.

    The number of rows, the first axis, may vary where it is above one.  The function must depend on
    its arguments and on the module's weights alone; weights are those of the first call, so the
    model must not be trained after it.  In-place writes to its tensors are kept.  If a tensor
    requires a gradient, the function itself is called.
    """

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        """function: of `module`, such as a method."""
        self.module, self.function = module, function
        self._packages: dict[Any, list[_Package]] = {}

    def __call__(self, *args: Any) -> Any:
        tensors: list[Tensor] = []
        spec = flatten(args, tensors)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return self.function(*args)
        # a stride of 0 (expand) would be read past its end
        tensors = [t.contiguous() if 0 in t.stride() else t for t in tensors]
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        key = (spec, dtype, *((t.shape[1:], t.stride(), t.dtype) for t in tensors))
        packages = self._packages.setdefault(key, [])
        package = next((each for each in packages if each.accepts(tensors)), None)
        if package is None:
            package = self._compile(spec, tensors, dtype, str(key))
            packages.append(package)
        return unflatten(package.output_spec, iter(package.run(tensors)))

    def _compile(
        self, spec: TreeSpec, tensors: list[Tensor], dtype: torch.dtype | None, key: str
    ) -> _Package:
        output_specs: list[TreeSpec] = []

        def flat(*tensors: Tensor) -> list[Tensor]:
            outputs: list[Tensor] = []
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                result = self.function(*unflatten(spec, iter(tensors)))
            output_specs.append(flatten(result, outputs))
            return outputs

        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PyTorch warns of its own calls
            # inference tensors cannot be traced
            examples = tuple(
                torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).copy_(t) for t in tensors
            )
            rows = tuple({0: Dim.AUTO} if t.shape[:1].numel() > 1 else {} for t in tensors)
            program = torch.export.export(
                _FunctionModule(self.module, flat), examples, dynamic_shapes={"tensors": rows}
            )
            loaded = torch._inductor.aoti_load_package(str(_compile_package(program, key)))
        return _Package(loaded.loader.run, output_specs[-1], *_rows_of(program))


@dataclass
class _Package:
    run: Callable[[list[Tensor]], list[Tensor]]
    output_spec: TreeSpec
    """Structure of its outputs."""
    rows: list[int | str]
    """Rows that each tensor must have, or the symbol for their number."""
    bounds: dict[str, tuple[int, int]]
    """Smallest and largest value of each symbol."""

    def accepts(self, tensors: list[Tensor]) -> bool:
        row_counts: dict[str, int] = {}
        for tensor, rows in zip(tensors, self.rows, strict=True):
            num_rows = len(tensor) if tensor.dim() else 1
            expected = row_counts.setdefault(rows, num_rows) if isinstance(rows, str) else rows
            if num_rows != expected:
                return False
        return all(low <= row_counts[name] <= high for name, (low, high) in self.bounds.items())


def _rows_of(program: ExportedProgram) -> tuple[list[int | str], dict[str, tuple[int, int]]]:
    """Return the rows of each input of a program, and the bounds of their symbols."""
    names = program.graph_signature.user_inputs
    inputs = {node.name: node.meta["val"] for node in program.graph.nodes if node.name in names}
    row_counts = [inputs[name].shape[0] if inputs[name].dim() else 1 for name in names]
    rows = [int(count) if is_concrete_int(count) else str(count) for count in row_counts]
    ranges = {str(symbol): found for symbol, found in program.range_constraints.items()}
    bounds = {name: ranges[name] for name in rows if isinstance(name, str)}
    return rows, {name: (int(b.lower), int(min(b.upper, MAX_ROWS))) for name, b in bounds.items()}


class _FunctionModule(nn.Module):
    """A function as a module that owns the weights it uses."""

    def __init__(self, module: nn.Module, function: Callable[..., list[Tensor]]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        return self.function(*tensors)


def _compile_package(program: ExportedProgram, key: str) -> Path:
    """Compile a program, or return the package that this machine has in its cache."""
    target = f"{torch.__version__} {pick_vec_isa()} {torch.get_num_threads()} threads"
    graph_code = re.sub("#.*", "", str(program))  # comments name source lines
    digest = hashlib.sha256(f"{target} {INDUCTOR_CONFIG} {key} {graph_code}".encode())
    for name, weight in [*program.state_dict.items(), *program.constants.items()]:
        digest.update(f"{name} {weight.dtype} {weight.shape} {weight.stride()}".encode())
        digest.update(weight.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    folder = Path(cache_dir()) / "dreamstage"
    path = folder / f"{digest.hexdigest()}.pt2"
    if not path.exists():
        tqdm.write("compiling a step for this machine, once: up to a minute", sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        # autotuning logs to stderr otherwise
        with tempfile.TemporaryDirectory(dir=folder) as temporary, redirect_stderr(StringIO()):
            package = torch._inductor.aoti_compile_and_package(
                program, package_path=f"{temporary}/it.pt2", inductor_configs=dict(INDUCTOR_CONFIG)
            )
            os.replace(package, path)
        _evict(folder)
    os.utime(path)  # eviction is by last use
    return path


def _evict(folder: Path) -> None:
    """Delete the least recently used packages beyond MAX_CACHE_BYTES."""
    total_bytes = 0
    packages = sorted(folder.glob("*.pt2"), key=lambda path: path.stat().st_mtime, reverse=True)
    for index, path in enumerate(packages):
        total_bytes += path.stat().st_size
        if index and total_bytes > MAX_CACHE_BYTES:
            path.unlink(missing_ok=True)
