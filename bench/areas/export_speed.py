"""A step of the exported world in ONNX Runtime, as a page takes it, against the same step in
PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.areas.play_speed import DEFAULT_RUN
from bench.races.pairs import Options, Row, compare, missing_row, race
from data.shards.episode_dataset import EpisodeDataset
from models.dynamics.dynamics import State
from models.world import World
from pipeline.export.graphs import to_onnx, world_graphs
from pipeline.export.page_starts import PageStart, page_starts
from pipeline.export.parity import Sessions
from pipeline.export.parity import compare as check
from pipeline.inference.aot_inductor import pick_compile_fn
from pipeline.inference.load_world import load_world

AREA = "export"
PLAIN, COMPILED = "PyTorch", "PyTorch, compiled"
TARGETS = {PLAIN: (1.0, 2.0), COMPILED: (0.5, 1.0)}
INSTALL = "-r requirements-web.txt"
GOAL_OFFSET = 50


def rows(options: Options) -> Iterator[Row]:
    """Race a step and its image at batch 1, in float32 on a CPU, in --run or the run in
    checkpoints/; ONNX Runtime has one thread, as in a page."""
    run = options.run or DEFAULT_RUN
    what = f"step and image of {run.name}, float32"
    try:
        import onnxruntime  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        yield missing_row(AREA, what, "PyTorch", INSTALL)
        return
    world = load_world(run, "cpu", precision="fp32")
    if world.latents.kind == "discrete":
        note = "not measured: this measures worlds of vectors, and this run's are codes"
        yield Row(AREA, what, PLAIN, "", note=note)
        return
    starts = page_starts(world, EpisodeDataset(run / "shards"), 3, GOAL_OFFSET, seed=0)
    graphs = {g.name: to_onnx(g, True) for g in world_graphs(world, None, starts[0].packed)}
    differences = check(world, None, graphs, starts)  # ValueError for more than rounding
    runners: dict[str, Callable[[], object]] = {
        "ours": onnx_step(Sessions(graphs), world, starts[0]),
        PLAIN: torch_step(world, starts[0]),
    }
    if not options.quick:
        fast = load_world(run, "cpu", precision="fp32")
        fast.compile_steps(pick_compile_fn(torch.device("cpu")))
        runners[COMPILED] = torch_step(fast, starts[0])
    seconds = race(runners, options.rounds, repeats=20)
    note = f"{options.threads} threads of PyTorch; latents at most {differences.latents:.1g} apart"
    yield from compare(AREA, what, seconds, TARGETS, notes=dict.fromkeys(runners, note))


def onnx_step(run: Sessions, world: World, start: PageStart) -> Callable[[], object]:
    given = {name: tensor.numpy() for name, tensor in start.packed.items()}
    given["action"] = world.actions.normalize(start.actions[:1]).numpy()

    def step() -> object:
        after = run("step", **given)
        return run("decode", latents=after["latents"])["frame"]

    return step


def torch_step(world: World, start: PageStart) -> Callable[[], Tensor]:
    state: State = start.state
    action = start.actions[:1]

    def step() -> Tensor:
        with torch.inference_mode():
            return world.decode(world.step(state, action))

    return step
