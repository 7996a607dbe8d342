"""Kernels against torch.compile, eager PyTorch and named peers, and against the bandwidth of a copy
where memory is the limit.  Without a GPU, the PyTorch path of each operation against its
definition."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import kernels
from bench.areas.roofline import HARDWARE_LIMIT, peak_rates
from bench.operations import attention_peers, vq
from bench.operations.cases import COMPILED, EAGER, LIGER, OPERATIONS, Case, cases
from bench.races.correctness import Operation, check_against_definition, floating
from bench.races.cuda_graph import CALLS_PER_GRAPH, Step, capture_graph
from bench.races.memory import memory_rows
from bench.races.pairs import (
    Incorrect,
    Options,
    Row,
    compare,
    missing_row,
    race,
    reason,
    time_call,
    value_row,
)
from evaluation.result_cache import write_json
from kernels import dispatch

AREA = "kernels"
BOTH = "forward and backward"
# seconds of a turn, so that the clock's resolution does not matter
TURN_SECONDS = {"cuda": 5e-3, "cpu": 1e-2}

# on a GPU: (target, stretch) of ratios, and of the share of the copy's bytes/s in %
TARGETS = {
    COMPILED: (1.0, 1.3),
    attention_peers.SDPA: (1.0, 1.25),
    attention_peers.FLEX: (1.2, 2.0),
    LIGER: (1.0, 1.2),
}
BANDWIDTH_TARGET = (80.0, 95.0)
MEMORY = (2.0, 4.0)
Ratios = dict[dispatch.Pass, float]


def rows(options: Options) -> Iterator[Row]:
    """Race every case of cases.py, then codebooks; with `tune`, save what --kernels auto reads."""
    on_gpu = options.device.type == "cuda"
    against_compile: dict[str, Ratios] = {}
    kernels.set_backend("triton" if on_gpu else "torch")
    torch.manual_seed(0)
    try:
        asked = options.only or OPERATIONS
        for case in cases(options.device, torch.bfloat16 if on_gpu else torch.float32):
            if case.operation not in asked:
                continue
            kept = against_compile.setdefault(case.operation, {})
            yield from _safely(case.name, partial(_race_case, case, options), kept)
        for size in vq.sizes(options.device) if "nearest_code" in asked else ():
            kept = against_compile.setdefault("nearest_code", {})
            yield from _safely(vq.case_name(size), partial(vq.race_rows, size, options), kept)
    finally:
        kernels.set_backend("auto")
    for name, ratios in against_compile.items() if on_gpu else ():
        yield from verdicts(name, ratios)
    if options.tune and on_gpu:
        kept = {name: each for name, each in against_compile.items() if each}
        save_tuned(kept, dispatch._arch(options.device))
    if not on_gpu and options.quick:
        note = "not in --quick without a GPU: 8 to 30 s of compiling each"
        yield Row(AREA, "every operation", COMPILED, "", note=note)


def verdicts(operation: str, ratios: Ratios) -> Iterator[Row]:
    """Report what `auto` does with an operation in each pass, by the ratios of its worst shapes."""
    for passes, worst in ratios.items():
        what = f"{operation}, {BOTH if passes == 'both' else passes}, at its worst shape"
        decision = "used" if worst > 1 else f"left to {COMPILED}"
        yield Row(AREA, what, COMPILED, "", ratio=worst, note=f"auto: {decision}")


def save_tuned(speedups: Mapping[str, Ratios], arch: str) -> None:
    """Merge speedups on a GPU architecture into kernels/tuned.json."""
    path = dispatch.TUNED_FILE
    known = json.loads(path.read_text()) if path.exists() else {}
    known[arch] = dict(sorted((known.get(arch, {}) | dict(speedups)).items()))
    write_json(path, known)
    dispatch.tuned_speedups.cache_clear()


def _safely(
    what: str, race_operation: Callable[[], Iterator[Row]], against_compile: Ratios
) -> Iterator[Row]:
    """Yield the rows of one operation; an error becomes a row, and the next operation is raced."""
    torch.compiler.reset()  # else the eighth shape of a function would run uncompiled
    try:
        for row in race_operation():
            if row.baseline == COMPILED and row.ratio is not None and row.unit == "us":
                passes: dispatch.Pass = "both" if row.name.endswith(BOTH) else "forward"
                worst = min(row.ratio, against_compile.get(passes, row.ratio))
                against_compile[passes] = round(worst, 3)
            yield row
    except Incorrect as problem:
        yield Row(AREA, what, "", "", note=f"incorrect: {problem}")
    except Exception as problem:
        yield Row(AREA, what, "", "", note=f"failed: {reason(problem)}")


def _race_case(case: Case, options: Options) -> Iterator[Row]:
    on_gpu = options.device.type == "cuda"
    check_against_definition(case.name, case.ours, case.definition, case.odd_inputs, case.grads)
    check_against_definition(case.name, case.ours, case.definition, case.inputs, case.grads)
    plain = case.eager if case.eager is not None and on_gpu else case.definition
    runners: dict[str, Operation] = {"ours": case.ours, EAGER: plain}
    if on_gpu or not options.quick:
        runners[COMPILED] = torch.compile(case.eager or case.definition, dynamic=False)
    for name, peer in case.peers.items():
        if not callable(peer):
            if on_gpu:  # it has nothing for a CPU
                yield missing_row(AREA, case.name, name, peer)
        elif on_gpu or name != LIGER:
            check_against_definition(
                f"{case.name}, {name}", peer, case.definition, case.inputs, False
            )
            runners[name] = peer
    for grads in (False, True) if case.grads else (False,):
        if case.fused and not grads:
            continue
        what = f"{case.name}, {BOTH}" if grads else f"{case.name}, forward"
        steps = {name: make_step(runner, case.inputs, grads) for name, runner in runners.items()}
        targets = {k: v for k, v in TARGETS.items() if on_gpu}
        seconds, note = _seconds(steps, options, graphs=not case.fused)
        yield from (
            replace(row, note=note) for row in compare(AREA, what, seconds, targets, unit="us")
        )
        if case.bytes_moved is not None:
            yield _bandwidth_row(what, case.bytes_moved[grads], seconds["ours"], options)
        if case.memory and on_gpu:
            yield from memory_rows(AREA, what, steps, {COMPILED: MEMORY})


def make_step(operation: Operation, inputs: Sequence[Tensor], grads: bool) -> Step:
    """Return a function of one call, or of one call and the gradients of all inputs."""
    if not grads:

        def forward() -> object:
            with torch.no_grad():
                return operation(*inputs)

        return forward
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    grad_outputs = [torch.ones_like(y) for y in floating(operation(*leaves))]

    def forward_and_backward() -> object:
        return torch.autograd.grad(floating(operation(*leaves)), leaves, grad_outputs)

    return forward_and_backward


def _seconds(
    steps: dict[str, Step], options: Options, graphs: bool
) -> tuple[dict[str, list[float]], str]:
    """Race steps, on a GPU as CUDA graphs, so that kernels are compared and not their launches.

    Returns seconds of a call by round, and a note.
    """
    device, note, calls = options.device, "", 1
    for run in steps.values():
        for _ in range(3):
            run()
    if device.type == "cuda" and graphs:
        try:
            steps = {name: capture_graph(run) for name, run in steps.items()}
            note, calls = f"CUDA graphs of {CALLS_PER_GRAPH} calls", CALLS_PER_GRAPH
        except RuntimeError:
            torch.cuda.synchronize(device)
            note = "launched one by one"
    first = min(time_call(steps["ours"], device) for _ in range(3))
    repeats = min(500, max(1, math.ceil(TURN_SECONDS[device.type] / first)))
    taken = race(steps, options.rounds, device=device, repeats=repeats)
    return {name: [seconds / calls for seconds in turns] for name, turns in taken.items()}, note


def _bandwidth_row(
    what: str, bytes_moved: float, seconds: Sequence[float], options: Options
) -> Row:
    copy = peak_rates(options.device, options.quick, options.rounds)["copy"]
    share = 100 * bytes_moved / sorted(seconds)[len(seconds) // 2] / copy
    target, stretch = BANDWIDTH_TARGET if options.device.type == "cuda" else (None, None)
    what = f"{what}, share of the copy's bytes/s"
    return value_row(AREA, what, "%", share, HARDWARE_LIMIT, target, stretch, options.rounds)
