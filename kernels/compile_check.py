"""Compile kernels for a GPU that is not there, and say what they would take of it.

    python -m kernels.ahead [--json] [THEME ...]

Each theme (norm, attention ...) lists its kernels in `AHEAD`, as they are launched, and how many
programs of each a multiprocessor has to hold.  Registers and spills are what NVIDIA's assembler
reports for sm_90a; it comes with Triton.
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

THEMES = ("norm", "rope", "gate", "attend", "decode", "entropy", "quantize", "recurrent", "rows")


@dataclass(frozen=True)
class CompileCase:
    """A kernel as it is launched at one size, and what it may take of the GPU."""

    name: str
    kernel: Any
    """The function under `triton.jit`."""
    types: dict[str, str]
    """Of arguments that have no value here, as Triton writes them: "*bf16", "i32", "fp32"."""
    values: dict[str, Any]
    """Of constants, and of whole numbers, which a launch looks at: 1s and multiples of 16 have code
    of their own."""
    num_warps: int = 4
    num_stages: int = 3
    min_programs: int = 1
    """Those that a multiprocessor has to hold at once."""
    wgmma: bool = False
    """Whether Hopper's matrix instruction has to be there."""


@dataclass(frozen=True)
class Occupancy:
    """What a compiled kernel takes of the GPU."""

    name: str
    registers: int
    spills: int
    """Bytes stored to memory for want of registers."""
    shared: int
    """Bytes of shared memory."""
    programs: int
    """Those that a multiprocessor holds at once."""
    wgmma: bool
    exceeded: list[str] = field(default_factory=list)
    """Limits that are passed, in words."""


def programs_per_multiprocessor(registers: int, shared: int, warps: int) -> int:
    """Count the programs that fit in one of Hopper's multiprocessors.

    As CUDA's occupancy calculator: each of four parts has 16,384 registers, which warps get by 256,
    and 16 warps; of 228 KiB of shared memory a program gets 128 bytes at a time, and 1 KiB unasked.
    """
    of_part = min(16, 16384 // (-(-registers * 32 // 256) * 256))
    return min(32, 4 * of_part // warps, (228 << 10) // (1024 + -(-shared // 128) * 128))


def compile_case(case: CompileCase) -> Occupancy:
    """Compile for sm_90 without a GPU."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constant = {x.name for x in case.kernel.params if x.is_constexpr}
    numbers = {n: x for n, x in case.values.items() if n not in constant and x not in (None, 1)}
    constants = {n: x for n, x in case.values.items() if n not in numbers}
    known = case.types | dict.fromkeys(numbers, "i32") | dict.fromkeys(constants, "constexpr")
    signature = {name: known[name] for name in case.kernel.arg_names}
    # what a launch would find out; tensors begin at multiples of 16 bytes
    multiples = {name for name, x in numbers.items() if x % 16 == 0}
    multiples |= {name for name, kind in case.types.items() if kind.startswith("*")}
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(signature)
        if name in multiples
    }
    knobs.nvidia.dump_ptxas_log = True
    knobs.compilation.always_compile = True  # from the cache, the assembler would say nothing
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
            f"a multiprocessor holds {programs} programs, {case.min_programs} are wanted"
        )
    if case.wgmma and re.search(r"\(C75\d\d\)", log):  # ptxas says so and goes on
        exceeded.append("its wgmma instructions wait for one another")
    if case.wgmma and not wgmma:
        exceeded.append("no wgmma, which has to be there")
    return Occupancy(case.name, registers, spills, shared, programs, wgmma, exceeded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("themes", nargs="*", help=f"of {', '.join(THEMES)}; all if none is named")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    for theme in arguments.themes:
        if theme not in THEMES:
            sys.exit(f"error: unknown theme {theme!r}; there are: {', '.join(THEMES)}")
    os.environ.pop("TRITON_INTERPRET", None)  # interpreted kernels cannot be compiled
    occupancies = []
    for theme in arguments.themes or THEMES:
        for case in importlib.import_module(f"kernels.{theme}").AHEAD:
            occupancies.append(compile_case(case))
    if arguments.json:
        print(json.dumps([asdict(t) for t in occupancies]))
    else:
        columns = ("registers", "spills", "shared", "programs", "wgmma")
        wide = max(len(t.name) for t in occupancies)
        print(f"{'kernel':<{wide}}", *(f"{name:>9}" for name in columns))
        for t in occupancies:
            numbers = (f"{getattr(t, name)!s:>9}" for name in columns)
            print(f"{t.name:<{wide}}", *numbers, *t.over)
    sys.exit(any(t.over for t in occupancies))


if __name__ == "__main__":
    main()
