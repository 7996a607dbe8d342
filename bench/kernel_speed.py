"""Kernels against torch.compile, eager PyTorch and named peers; against the copy, where memory is
the limit.  Without a GPU, the PyTorch path of each operation against its definition."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import kernels
from bench import attention_peers, vq
from bench.cases import COMPILED, EAGER, LIGER, OPERATIONS, Case, cases
from bench.correctness import Operation, check_near, floating
from bench.cuda_graph import CALLS, Step, captured
from bench.memory import memory_rows
from bench.pairs import Options, Row, Wrong, clocked, compare, missing, race, reason, value
from bench.roofline import MACHINE, measured
from evaluation.result_cache import write_json
from kernels import dispatch

AREA = "kernels"
BOTH = "forward and backward"
# seconds of a turn, so that the clock does not count
LONG_ENOUGH = {"cuda": 5e-3, "cpu": 1e-2}

# on a GPU: (bar, aim) of ratios, and of the share of the copy's bytes/s in %
BARS = {
    COMPILED: (1.0, 1.3),
    attention_peers.SDPA: (1.0, 1.25),
    attention_peers.FLEX: (1.2, 2.0),
    LIGER: (1.0, 1.2),
}
SHARE = (80.0, 95.0)
MEMORY = (2.0, 4.0)
Ratios = dict[dispatch.Pass, float]


def rows(options: Options) -> Iterator[Row]:
    """Every case of cases.py, then codebooks; with `keep`, written down for --kernels auto."""
    on_gpu = options.device.type == "cuda"
    against_compile: dict[str, Ratios] = {}
    kernels.choose("triton" if on_gpu else "torch")
    torch.manual_seed(0)
    try:
        asked = options.only or OPERATIONS
        for case in cases(options.device, torch.bfloat16 if on_gpu else torch.float32):
            if case.operation not in asked:
                continue
            kept = against_compile.setdefault(case.operation, {})
            yield from _safely(case.what, partial(_raced, case, options), kept)
        for size in vq.sizes(options.device) if "assign" in asked else ():
            kept = against_compile.setdefault("assign", {})
            yield from _safely(vq.named(size), partial(vq.raced, size, options), kept)
    finally:
        kernels.choose("auto")
    for name, ratios in against_compile.items() if on_gpu else ():
        yield from verdicts(name, ratios)
    if options.keep and on_gpu:
        kept = {name: each for name, each in against_compile.items() if each}
        keep(kept, dispatch._kind(options.device))
    if not on_gpu and options.quick:
        note = "not in --quick without a GPU: 8 to 30 s of compiling each"
        yield Row(AREA, "every operation", COMPILED, "", note=note)


def verdicts(operation: str, ratios: Ratios) -> Iterator[Row]:
    """What `auto` does with an operation in each pass, by these ratios, of its worst shapes."""
    for passes, worst in ratios.items():
        what = f"{operation}, {BOTH if passes == 'both' else passes}, at its worst shape"
        way = "used" if worst > 1 else f"left to {COMPILED}"
        yield Row(AREA, what, COMPILED, "", ratio=worst, note=f"auto: {way}")


def keep(kept: Mapping[str, Ratios], kind: str) -> None:
    """Merge ratios of a kind of GPU into kernels/tuned.json."""
    path = dispatch.MEASURED
    known = json.loads(path.read_text()) if path.exists() else {}
    known[kind] = dict(sorted((known.get(kind, {}) | dict(kept)).items()))
    write_json(path, known)
    dispatch.measured.cache_clear()


def _safely(
    what: str, raced: Callable[[], Iterator[Row]], against_compile: Ratios
) -> Iterator[Row]:
    """Rows of one operation; what is wrong or breaks is a row, and the next one comes."""
    torch.compiler.reset()  # else the eighth shape of a function would run uncompiled
    try:
        for row in raced():
            if row.against == COMPILED and row.ratio is not None and row.unit == "us":
                passes: dispatch.Pass = "both" if row.what.endswith(BOTH) else "forward"
                worst = min(row.ratio, against_compile.get(passes, row.ratio))
                against_compile[passes] = round(worst, 3)
            yield row
    except Wrong as problem:
        yield Row(AREA, what, "", "", note=f"not shown, wrong: {problem}")
    except Exception as problem:
        yield Row(AREA, what, "", "", note=f"broken off, {reason(problem)}")


def _raced(case: Case, options: Options) -> Iterator[Row]:
    on_gpu = options.device.type == "cuda"
    check_near(case.what, case.ours, case.definition, case.odd, case.grads)
    check_near(case.what, case.ours, case.definition, case.inputs, case.grads)
    plain = case.path if case.path is not None and on_gpu else case.definition
    runners: dict[str, Operation] = {"ours": case.ours, EAGER: plain}
    if on_gpu or not options.quick:
        runners[COMPILED] = torch.compile(case.path or case.definition, dynamic=False)
    for name, peer in case.peers.items():
        if not callable(peer):
            if on_gpu:  # it has nothing for a CPU
                yield missing(AREA, case.what, name, peer)
        elif on_gpu or name != LIGER:
            check_near(f"{case.what}, {name}", peer, case.definition, case.inputs, False)
            runners[name] = peer
    for grads in (False, True) if case.grads else (False,):
        if case.fused and not grads:
            continue
        what = f"{case.what}, {BOTH}" if grads else f"{case.what}, forward"
        steps = {name: step(runner, case.inputs, grads) for name, runner in runners.items()}
        bars = {k: v for k, v in BARS.items() if on_gpu}
        seconds, note = _seconds(steps, options, graphs=not case.fused)
        yield from (
            replace(row, note=note) for row in compare(AREA, what, seconds, bars, unit="us")
        )
        if case.traffic is not None:
            yield _share(what, case.traffic[grads], seconds["ours"], options)
        if case.memory and on_gpu:
            yield from memory_rows(AREA, what, steps, {COMPILED: MEMORY})


def step(operation: Operation, inputs: Sequence[Tensor], grads: bool) -> Step:
    """One call, or one call and the gradients of all inputs."""
    if not grads:

        def forward() -> object:
            with torch.no_grad():
                return operation(*inputs)

        return forward
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    ups = [torch.ones_like(y) for y in floating(operation(*leaves))]

    def both() -> object:
        return torch.autograd.grad(floating(operation(*leaves)), leaves, ups)

    return both


def _seconds(
    steps: dict[str, Step], options: Options, graphs: bool
) -> tuple[dict[str, list[float]], str]:
    """Race steps, on a GPU as CUDA graphs, so that kernels are compared and not their launches."""
    device, note, calls = options.device, "", 1
    for run in steps.values():
        for _ in range(3):
            run()
    if device.type == "cuda" and graphs:
        try:
            steps = {name: captured(run) for name, run in steps.items()}
            note, calls = f"CUDA graphs of {CALLS} calls", CALLS
        except RuntimeError:
            torch.cuda.synchronize(device)
            note = "launched one by one"
    first = min(clocked(steps["ours"], device) for _ in range(3))
    repeats = min(500, max(1, math.ceil(LONG_ENOUGH[device.type] / first)))
    taken = race(steps, options.rounds, device=device, repeats=repeats)
    return {name: [seconds / calls for seconds in turns] for name, turns in taken.items()}, note


def _share(what: str, traffic: float, seconds: Sequence[float], options: Options) -> Row:
    copy = measured(options.device, options.quick, options.rounds)["copy"]
    share = 100 * traffic / sorted(seconds)[len(seconds) // 2] / copy
    bar, aim = SHARE if options.device.type == "cuda" else (None, None)
    what = f"{what}, share of the copy's bytes/s"
    return value(AREA, what, "%", share, MACHINE, bar, aim, options.rounds)
