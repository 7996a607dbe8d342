"""Which operations run as Triton kernels: a backend is set once, printed and saved by the caller.

`auto` uses a kernel where tuned.json has a speedup over torch.compile above 1 on this GPU
architecture: forward where there are no gradients, else both passes.
`python -m bench kernels --tune` measures and writes it.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kernels.reference import BlockMask

Backend = Literal["auto", "triton", "torch"]

TUNED_FILE = Path(__file__).parent / "tuned.json"
SHORT = 64  # keys up to which one program processes several sequences at once
Pass = Literal["forward", "both"]

_backend: Backend = "auto"


def set_backend(backend: Backend, device: torch.device | None = None) -> None:
    """Run operations on GPU tensors as Triton kernels, in PyTorch, or as whichever measured faster.

    device: of the tensors; by default a GPU if there is one.  ValueError where Triton cannot run.
    """
    global _backend
    on_gpu = device.type == "cuda" if device else torch.cuda.is_available()
    if backend == "triton" and not (on_gpu or interpreted()):
        raise ValueError(
            "--kernels triton needs a CUDA GPU, and there is none here or --device leaves it out; "
            "--kernels auto works without one (TRITON_INTERPRET=1 runs the kernels on the CPU, "
            "slowly, for debugging)"
        )
    if backend == "triton" and not has_triton():
        raise ValueError(
            "--kernels triton needs Triton, which cannot be imported here; install it (pip install "
            "triton), or give --kernels auto"
        )
    _backend = backend


def describe(device: torch.device) -> str:
    """Describe what runs on `device`, in one line."""
    if device.type != "cuda" and not (interpreted() and _backend == "triton"):
        return f"torch kernels ({_backend}: no CUDA)" if _backend == "auto" else "torch kernels"
    if _backend != "auto":
        return f"{_backend} kernels"
    if not has_triton():
        return "torch kernels (auto: Triton cannot be imported)"
    speedups = tuned_speedups(_arch(device))
    faster = sorted(name for name, ratios in speedups.items() if max(ratios.values()) > 1)
    if faster:
        return f"triton kernels where measured faster (auto: {', '.join(faster)})"
    return "torch kernels (auto: `python -m bench kernels --tune` measures Triton's here)"


def use_triton(operation: str, *tensors: Tensor, fuses: bool = False) -> bool:
    """Return whether `operation` on these tensors runs as a Triton kernel; float64 never does.

    fuses: without gradients torch.compile fuses the operation with its neighbors, which a benchmark
    of the operation alone does not measure; `auto` then leaves it to the compiler.
    """
    if _backend == "torch" or not (tensors[0].is_cuda or (_backend == "triton" and interpreted())):
        return False
    if any(x.dtype == torch.float64 for x in tensors):  # kernels add up in float32
        return False
    if _backend == "triton":
        return True
    if fuses and torch.compiler.is_compiling() and not torch.is_grad_enabled():
        return False
    return _is_faster(operation, "both" if torch.is_grad_enabled() else "forward")


def attention_variant(block_mask: BlockMask, keys: int) -> str:
    """Name the kind of attention that is measured: PyTorch has kernels of its own for a full causal
    context, and none for frames."""
    if keys <= SHORT:
        return "attention_short"
    full_context = (
        block_mask.context_blocks is None
        or block_mask.context_blocks * block_mask.block_size >= keys
    )
    causal = block_mask.block_size == 1 or block_mask.causal_within_block
    return "attention" if full_context and causal else "attention_blocks"


def interpreted() -> bool:
    """Return whether Triton's interpreter stands in for a GPU (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _is_faster(operation: str, wanted: Pass) -> bool:
    ratios = tuned_speedups(_arch(torch.device("cuda"))).get(operation, {}) if has_triton() else {}
    # some have no gradients, others compute them in the forward pass: their one ratio is for both
    return ratios.get(wanted, max(ratios.values(), default=0.0)) > 1


# torch.compile need not trace it: `assume_constant_result`, which imports the compiler, for seconds
_is_faster._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def tuned_speedups(arch: str) -> dict[str, dict[Pass, float]]:
    """Read each kernel's speedup over torch.compile at its worst shape on `arch`, for each pass."""
    return json.loads(TUNED_FILE.read_text()).get(arch, {}) if TUNED_FILE.exists() else {}


@cache
def has_triton() -> bool:
    """Return whether Triton can be imported; it takes a second, so that only a GPU's user waits."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def _arch(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
