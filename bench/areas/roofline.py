"""The limits of this machine: a large copy, a large matrix product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from statistics import median

import torch

from bench.races.pairs import Options, Row, race, value_row
from pipeline.device import pick_precision

AREA = "roofline"
MIB = 2**20
HARDWARE_LIMIT = "(hardware limit)"


def rows(options: Options) -> Iterator[Row]:
    """Yield one row for each limit; other areas read the same numbers from `peak_rates`."""
    size, side = sizes(options.device, options.quick)
    for name, rate in peak_rates(options.device, options.quick, options.rounds).items():
        if name == "copy":
            what = f"copy of {size // MIB} MiB, reading and writing"
            yield value_row(AREA, what, "GB/s", rate / 1e9, HARDWARE_LIMIT, rounds=options.rounds)
        else:
            what = f"product of two {side} x {side}, {name}"
            yield value_row(
                AREA, what, "GFLOP/s", rate / 1e9, HARDWARE_LIMIT, rounds=options.rounds
            )


@cache
def peak_rates(device: torch.device, quick: bool, rounds: int = 10) -> dict[str, float]:
    """Measure bytes/s of `copy`, and FLOP/s of products in `fp32 highest`, `fp32 medium` and, where
    the hardware has it, `bf16`."""
    size, side = sizes(device, quick)
    runners: dict[str, Callable[[], object]] = {}
    source = torch.ones(size // 4, device=device)
    runners["copy"] = partial(torch.empty_like(source).copy_, source)
    left = torch.randn(side, side, device=device)
    for precision in ("highest", "medium"):
        runners[f"fp32 {precision}"] = partial(_product, left, torch.empty_like(left), precision)
    if pick_precision(device, "auto") == "bf16":
        narrow = left.bfloat16()
        runners["bf16"] = partial(torch.mm, narrow, narrow, out=torch.empty_like(narrow))
    repeats = 10 if device.type == "cuda" else 1
    seconds = race(runners, rounds, device=device, repeats=repeats)
    amounts = {name: 2 * size if name == "copy" else 2 * side**3 for name in runners}
    return {name: amounts[name] / median(taken) for name, taken in seconds.items()}


def sizes(device: torch.device, quick: bool) -> tuple[int, int]:
    """Return the bytes of the copy, and the side of the product."""
    if device.type == "cuda":
        return 1024 * MIB, 8192
    return (64 * MIB, 1024) if quick else (512 * MIB, 4096)


def _product(left: torch.Tensor, out: torch.Tensor, precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        torch.mm(left, left, out=out)
    finally:
        torch.set_float32_matmul_precision(before)
