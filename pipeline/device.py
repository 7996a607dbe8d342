"""Choose the device, what runs on it, and the precision, once."""

from __future__ import annotations

import ctypes
import platform
import sys

import numpy as np
import torch

import kernels
from data.ranges import DeviceOption, PrecisionOption
from kernels import Backend
from models.layers.precision import Precision

_requested: DeviceOption = "auto"


def set_device(requested: DeviceOption, backend: Backend = "auto") -> None:
    """Choose what `pick_device` returns from now on, and which kernels run there.

    ValueError for a device that is not here, and for kernels that cannot run on it.
    """
    global _requested
    if requested not in ("auto", "cpu") and requested != _best():
        raise ValueError(
            f"--device {requested}: PyTorch {torch.__version__} finds no such device here; give "
            f"--device {_best()}, or leave it out"
        )
    _requested = requested
    kernels.set_backend(backend, torch.device(_chosen()))


def pick_device() -> torch.device:
    """Return what --device asks for: by default CUDA, else Apple's MPS, else the CPU; a CPU is set
    up for long runs."""
    device = torch.device(_chosen())
    if device.type == "cpu":
        _prepare_cpu()
    return device


def _chosen() -> DeviceOption:
    return _best() if _requested == "auto" else _requested


def _best() -> DeviceOption:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def pick_precision(device: torch.device, requested: PrecisionOption) -> Precision:
    """Return bf16 where the hardware multiplies it faster than float32, unless one is requested.

    A GPU whose tensor cores have no bf16 takes fp16.
    """
    if requested != "auto":
        return requested
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        return "fp16" if torch.cuda.get_device_capability(device) >= (7, 0) else "fp32"
    if device.type == "cpu":
        flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return "bf16" if flags.get("avx512_bf16") or flags.get("amx_bf16") else "fp32"
    return "fp32"


def data_memory_limit(device: torch.device) -> int:
    """Return the bytes that training data may take on an accelerator: half of what is free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return 0


def describe_device(device: torch.device) -> str:
    """Name the device, and a CPU's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads ({platform.machine()})"
    return device.type


def _prepare_cpu() -> None:
    # oneDNN's float32 products are faster at "medium", and exact unless it uses bf16 (AMX)
    torch.set_float32_matmul_precision("medium")
    if _matmul_error() > 1e-5:
        torch.set_float32_matmul_precision("highest")
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        # glibc returns every large tensor to the system, and each new one is zeroed page by page,
        # which slows a training step. Memory up to 32 MB (its limit) is kept instead.
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 32 * 2**20)
        libc.mallopt(trim_threshold, 2**30)


def _matmul_error() -> float:
    """Return the relative error of float32 products against float64: 1e-6, or 2e-3 in bf16."""
    random = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 256, 256, generator=random)
    exact = left.numpy().astype(np.float64) @ right.numpy().astype(np.float64)
    return float(np.linalg.norm((left @ right).numpy() - exact) / np.linalg.norm(exact))
