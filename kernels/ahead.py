"""Compile kernels for a GPU that is not there, and say what they would take of it.

    python -m kernels.ahead [--json] [THEME ...]

Each theme (norm, attention ...) lists its kernels, with types, constants and limits, in `AHEAD`.
Registers and spills are what NVIDIA's assembler reports for sm_90a; it comes with Triton.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

THEMES = ("norm", "rope", "gate", "attend", "decode", "entropy", "quantize", "recurrent")


@dataclass(frozen=True)
class Ahead:
    """A kernel as it is launched at one size, and what it may take of the GPU."""

    name: str
    kernel: Any
    """The function under `triton.jit`."""
    types: dict[str, str]
    """Of arguments that are not constants, as Triton writes them: "*bf16", "i32", "fp32"."""
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3
    registers: int = 128
    """Of a thread, at most."""
    shared: int = 0
    """Bytes of shared memory, at most."""
    wgmma: bool = False
    """Whether Hopper's matrix instruction has to be there."""


@dataclass(frozen=True)
class Taken:
    """What a compiled kernel takes of the GPU."""

    name: str
    registers: int
    spills: int
    """Bytes stored to memory for want of registers."""
    shared: int
    wgmma: bool
    over: list[str] = field(default_factory=list)
    """Limits that are passed, in words."""


def compile_ahead(case: Ahead) -> Taken:
    """Compile for sm_90 without a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = dict(case.types) | {name: "constexpr" for name in case.constants}
    ordered = {name: signature[name] for name in case.kernel.arg_names}
    # what a launch would find out: tensors begin at multiples of 16 bytes
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, kind) in enumerate(ordered.items())
        if kind.startswith("*")
    }
    compiled = triton.compile(
        ASTSource(case.kernel, ordered, constexprs=case.constants, attrs=aligned),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": case.warps, "num_stages": case.stages},
    )
    ptx = compiled.asm["ptx"]
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        told = subprocess.run(
            [assembler, "-v", "--gpu-name=sm_90a", source, "-o", Path(folder) / "kernel.cubin"],
            capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip
    registers = int(re.findall(r"Used (\d+) registers", told)[-1])
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", told))
    shared = int(compiled.metadata.shared)
    wgmma = "wgmma.mma_async" in ptx
    over = []
    if registers > case.registers:
        over.append(f"{registers} registers, {case.registers} are allowed")
    if spills:
        over.append(f"{spills} bytes spilled, none are allowed")
    if shared > case.shared:
        over.append(f"{shared} bytes of shared memory, {case.shared} are allowed")
    if case.wgmma and re.search(r"\(C75\d\d\)", told):  # ptxas says so and goes on
        over.append("its wgmma instructions wait for one another")
    if case.wgmma and not wgmma:
        over.append("no wgmma, which has to be there")
    return Taken(case.name, registers, spills, shared, wgmma, over)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("themes", nargs="*", help=f"of {', '.join(THEMES)}; all if none is named")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)  # interpreted kernels cannot be compiled
    taken = []
    for theme in arguments.themes or THEMES:
        for case in importlib.import_module(f"kernels.{theme}").AHEAD:
            taken.append(compile_ahead(case))
    if arguments.json:
        print(json.dumps([asdict(t) for t in taken]))
    else:
        print(f"{'kernel':<40}{'registers':>10}{'spills':>8}{'shared':>9}  wgmma")
        for t in taken:
            print(f"{t.name:<40}{t.registers:>10}{t.spills:>8}{t.shared:>9}  {t.wgmma}", *t.over)
    sys.exit(any(t.over for t in taken))


if __name__ == "__main__":
    main()
