"""The plain-text table, printed row by row, and its heading."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

from bench.races.pairs import Row

PACKAGES = (
    "torch", "triton", "numpy", "h5py", "transformers", "vector-quantize-pytorch", "liger-kernel",
    "stable-worldmodel",
)  # fmt: skip
WIDTHS = (11, 64, 34, 17, 17, 22, 10)
HEADINGS = ("area", "name", "baseline", "ours", "theirs", "ratio [95%]", "target, stretch")


def machine_info(device: torch.device) -> dict[str, Any]:
    """Describe the machine: processor, GPU, threads, versions."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def load_average() -> float | None:
    """Return the load average of the last minute, where the system has one."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def heading(info: dict[str, Any], before: float | None) -> str:
    """Format what is printed once, above the table."""
    versions = ", ".join(f"{name} {number}" for name, number in info["versions"].items())
    return "\n".join(
        [
            f"{info['gpu'] or 'no GPU'}; {info['cpu']}, {info['cores']} cores "
            f"({info['capability']}), {info['threads']} threads; load {before} before",
            versions,
            "",
            _columns(HEADINGS).rstrip(),
        ]
    )


def format_row(row: Row) -> str:
    """Format one row; whether it reached its target comes before the note, as + or -."""
    verdict = {True: "+", False: "-", None: " "}[row.passed]
    ratio = ""
    if row.ratio is not None:
        ratio = f"{row.ratio:.3g}x"
        if row.low is not None and row.high is not None:
            ratio += f" [{row.low:.3g}, {row.high:.3g}]"
    targets = ", ".join(f"{x:g}" for x in (row.target, row.stretch) if x is not None)
    cells = (row.area, row.name, row.baseline, *_values(row), ratio, targets)
    return f"{_columns(cells)}{verdict} {row.note}".rstrip()


def _values(row: Row) -> tuple[str, str]:
    numbers = (row.ours, row.theirs)
    ours, theirs = ("" if n is None else f"{_number(n)} {row.unit}" for n in numbers)
    return ours, theirs


def _number(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def _columns(cells: tuple[str, ...]) -> str:
    # a cell that is too long pushes the rest to the right rather than losing its end
    return "".join(f"{c:<{w - 1}} " for c, w in zip(cells, WIDTHS, strict=True))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
