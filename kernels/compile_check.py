"""Compile kernels for a Hopper GPU without one, and print the resources that they take.

    python -m kernels.compile_check [--json] [--quick] [THEME ...]

Each theme (norm, flash ...) is a module that lists its kernels in `COMPILE_CASES`, as they are
launched, and how many programs of each a multiprocessor has to hold.  Registers and spills are what
NVIDIA's assembler, which comes with Triton, reports for sm_90a.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import re
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from typing import Any

THEMES = (
    "norm", "rope", "gate", "flash", "flash_short", "flash_decoding", "entropy", "quantize",
    "recurrent", "rows",
)  # fmt: skip


@dataclass(frozen=True)
class CompileCase:
    """A kernel as it is launched at one size, and the limits that it has to keep."""

    name: str
    kernel: Any
    """The function under `triton.jit`."""
    types: dict[str, str]
    """Types of arguments that have no value here, as Triton writes them: "*bf16", "i32", "fp32"."""
    values: dict[str, Any]
    """Values of constants and of integers, which a launch specializes on: 1s and multiples of 16
    have code of their own."""
    num_warps: int = 4
    num_stages: int = 3
    min_programs: int = 1
    """Programs that a multiprocessor has to hold at once."""
    wgmma: bool = False
    """Whether the kernel has to use Hopper's matrix instruction."""


@dataclass(frozen=True)
class Occupancy:
    """The resources of the GPU that a compiled kernel takes."""

    name: str
    registers: int
    spills: int
    """Bytes stored to memory for lack of registers."""
    shared: int
    """Bytes of shared memory."""
    programs: int
    """Programs that a multiprocessor holds at once."""
    wgmma: bool
    exceeded: list[str] = field(default_factory=list)
    """The limits that it exceeds, in words."""


def programs_per_multiprocessor(registers: int, shared: int, warps: int) -> int:
    """Count the programs that fit in one of Hopper's multiprocessors.

    As CUDA's occupancy calculator: each of four partitions has 16,384 registers, allocated to warps
    by 256, and 16 warps; 228 KiB of shared memory are allocated by 128 bytes, 1 KiB a program more.
    """
    warps_per_partition = min(16, 16384 // (-(-registers * 32 // 256) * 256))
    by_memory = (228 << 10) // (1024 + -(-shared // 128) * 128)
    return min(32, 4 * warps_per_partition // warps, by_memory)


def compile_case(case: CompileCase) -> Occupancy:
    """Compile for sm_90 and read what the assembler reports."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constant = {x.name for x in case.kernel.params if x.is_constexpr}
    numbers = {n: x for n, x in case.values.items() if n not in constant and x not in (None, 1)}
    constants = {n: x for n, x in case.values.items() if n not in numbers}
    known = case.types | dict.fromkeys(numbers, "i32") | dict.fromkeys(constants, "constexpr")
    signature = {name: known[name] for name in case.kernel.arg_names}
    # as a launch would find; tensors begin at multiples of 16 bytes
    multiples = {name for name, x in numbers.items() if x % 16 == 0}
    multiples |= {name for name, dtype in case.types.items() if dtype.startswith("*")}
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(signature)
        if name in multiples
    }
    knobs.nvidia.dump_ptxas_log = True
    knobs.compilation.always_compile = True  # from the cache, the assembler would report nothing
    with redirect_stdout(io.StringIO()) as output:
        compiled = triton.compile(
            ASTSource(case.kernel, signature, constexprs=constants, attrs=attributes),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": case.num_warps, "num_stages": case.num_stages},
        )
    log = output.getvalue()
    registers = int(re.findall(r"Used (\d+) registers", log)[-1])
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", log))
    shared = int(compiled.metadata.shared)
    programs = programs_per_multiprocessor(registers, shared, case.num_warps)
    wgmma = "wgmma.mma_async" in compiled.asm["ptx"]
    exceeded = []
    if spills:
        exceeded.append(f"{spills} bytes spilled, none are allowed")
    if programs < case.min_programs:
        exceeded.append(
            f"a multiprocessor holds {programs} programs, {case.min_programs} are required"
        )
    if case.wgmma and re.search(r"\(C75\d\d\)", log):  # a warning of ptxas, which then continues
        exceeded.append("its wgmma instructions wait for one another")
    if case.wgmma and not wgmma:
        exceeded.append("no wgmma, which is required")
    return Occupancy(case.name, registers, spills, shared, programs, wgmma, exceeded)


def covering(cases: list[CompileCase]) -> list[CompileCase]:
    """Few of a theme's cases that have all of its kernels, each with all of its types, and all of
    the theme's flags.  Of equal ones the one of which a multiprocessor has to hold most programs is
    taken, and of those the last, which is the largest."""

    def traits(case: CompileCase) -> set[tuple[Any, ...]]:
        flags = {(name, x) for name, x in case.values.items() if isinstance(x, bool)}
        absent = {(name, x) for name, x in case.values.items() if x is None}
        return flags | {(case.kernel.fn, *pair) for pair in absent | set(case.types.items())}

    left = set[tuple[Any, ...]]().union(*map(traits, cases))
    kept = []
    while left:
        best = max(reversed(cases), key=lambda case: (len(traits(case) & left), case.min_programs))
        left -= traits(best)
        kept.append(best)
    return [case for case in cases if case in kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("themes", nargs="*", help=f"{', '.join(THEMES)}; all if none is named")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="compile each kernel with each type")
    arguments = parser.parse_args()
    for theme in arguments.themes:
        if theme not in THEMES:
            sys.exit(f"error: unknown theme {theme!r}; there are: {', '.join(THEMES)}")
    os.environ.pop("TRITON_INTERPRET", None)  # interpreted kernels cannot be compiled
    occupancies = []
    for theme in arguments.themes or THEMES:
        cases = importlib.import_module(f"kernels.{theme}").COMPILE_CASES
        occupancies += [compile_case(x) for x in (covering(cases) if arguments.quick else cases)]
    if arguments.json:
        print(json.dumps([asdict(t) for t in occupancies]))
    else:
        columns = ("registers", "spills", "shared", "programs", "wgmma")
        wide = max(len(t.name) for t in occupancies)
        print(f"{'kernel':<{wide}}", *(f"{name:>9}" for name in columns))
        for t in occupancies:
            numbers = (f"{getattr(t, name)!s:>9}" for name in columns)
            print(f"{t.name:<{wide}}", *numbers, *t.exceeded)
    sys.exit(any(t.exceeded for t in occupancies))


if __name__ == "__main__":
    main()
