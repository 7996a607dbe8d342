"""What a model costs as it grows: training steps by size and by context, what it then predicts,
and plans by candidates, horizon and worlds at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from bench.areas.play_speed import start_clip
from bench.areas.train_speed import StepRunner, TokenModel, Workload, llama_config
from bench.curves.growth_table import Measured
from bench.curves.own_process import alone, run_stage
from models.planning.planner import Planner, PlannerConfig
from pipeline.device import pick_device, pick_precision
from pipeline.inference.load_world import load_world

SIZE, CONTEXT, TRAINED = "million weights", "frames of context", "million weights of a predictor"
CANDIDATES, HORIZON, WORLDS = "candidates", "blocks of a plan", "worlds planned for at once"
SIZES = ((128, 4, 2, 352), (256, 8, 4, 704), (384, 12, 6, 1056), (576, 24, 9, 2688))
"""Width, layers, heads and width within a layer: 1M to 150M with their words."""
CONTEXTS = (1, 2, 4, 8, 16)
GRID, WORDS = (8, 8), 1024
PREDICTORS = ((64, 2), (128, 4), (192, 4), (256, 6), (384, 8))
"""Width and layers of the predictors that are trained."""
CANDIDATES_SIZES, HORIZON_SIZES = (50, 100, 200, 400, 800), (1, 2, 5, 10, 20)
WORLD_SIZES = (1, 2, 4, 8, 16)
PLAN = PlannerConfig(num_samples=200, iterations=10, num_elites=20, horizon=5)
"""Of a plan, what does not grow."""
STEPS = 5


def training() -> Iterator[Measured]:
    """Tokens/s and memory of a training step, each in a process of its own."""
    for dim, layers, heads, mlp in SIZES:
        work = Workload(llama_config(dim, layers, heads, mlp, 4), WORDS, GRID)
        _, (millions, rate), memory = alone(train, work)
        yield Measured(SIZE, "training, tokens/s", millions, rate)
        yield Measured(SIZE, "training, memory, MiB", millions, memory)
    dim, layers, heads, mlp = SIZES[1]
    for frames in CONTEXTS:
        work = Workload(llama_config(dim, layers, heads, mlp, frames), WORDS, GRID)
        _, (_, rate), memory = alone(train, work)
        yield Measured(CONTEXT, "training, tokens/s", frames, rate)
        yield Measured(CONTEXT, "training, memory, MiB", frames, memory)


def train(work: Workload) -> tuple[float, float]:
    """Million weights, and tokens/s."""
    device = pick_device()
    precision = "bf16" if pick_precision(device, "auto") == "bf16" else "fp32"
    torch.manual_seed(0)
    model = TokenModel(work).to(device)
    tokens = work.sample(work.sequence_length + 1, device)
    batch = (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    step = StepRunner(model, model, batch, precision)
    step()
    rate = batch[0].numel() / _seconds(step)
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    return float(f"{millions:.3g}"), rate


def validation(run: Path, out: Path, steps: int) -> Iterator[Measured]:
    """PSNR of imagined frames, on the validation split, of predictors that are trained alike.

    `run` has shards and a tokenizer; each predictor is trained in a run of its own below `out`, on
    the same of both.  Raises ValueError where one is there: its steps would not be timed again.
    """
    for stage, name in (("preprocess", "shards"), ("train_tokenizer", "tokenizer/best.pt")):
        if not (run / name).exists():
            raise ValueError(
                f"{run / name} is not there; {stage}.py writes it, or give another --run"
            )
    owns = [out / f"predictor-{dim}" for dim, _ in PREDICTORS]
    for own in owns:
        if own.exists():
            raise ValueError(
                f"{own} is of an earlier measurement, and would not be trained again; delete it, "
                f"or give another --out"
            )
    for own, (dim, layers) in zip(owns, PREDICTORS, strict=True):
        own.mkdir()
        for name in ("shards", "tokenizer", "latents", "run.json"):
            if (run / name).exists():  # latents are a cache, which a run may lack
                (own / name).symlink_to((run / name).resolve())
        seconds, _ = run_stage(
            "train_dynamics", own, "--train.steps", str(steps), "--train.eval-every", str(steps),
            "--model.transformer.dim", str(dim), "--model.transformer.num-layers", str(layers),
            "--model.transformer.num-heads", str(dim // 32),
            "--model.transformer.mlp-dim", str(4 * dim),
        )  # fmt: skip
        lines = (own / "dynamics/log.jsonl").read_text().splitlines()
        found = [line for line in map(json.loads, lines) if "validation/psnr" in line][-1]
        weights = torch.load(own / "dynamics/best.pt", weights_only=True)["model"]
        millions = round(sum(weight.numel() for weight in weights.values()) / 1e6, 2)
        for name in ("psnr", "psnr_1", "psnr_16", "delta_psnr_4"):
            value = found[f"validation/{name}"]
            yield Measured(TRAINED, f"{name} after {steps} steps, dB", millions, value)
        yield Measured(TRAINED, f"{steps} steps, s", millions, seconds)


def planning(run: Path) -> Iterator[Measured]:
    """Seconds of one plan by CEM in a trained world."""
    for count in CANDIDATES_SIZES:
        yield _plan(run, CANDIDATES, count, replace(PLAN, num_samples=count))
    for blocks in HORIZON_SIZES:
        yield _plan(run, HORIZON, blocks, replace(PLAN, horizon=blocks))
    for worlds in WORLD_SIZES:
        yield _plan(run, WORLDS, worlds, PLAN, worlds)


def _plan(run: Path, part: str, size: int, config: PlannerConfig, worlds: int = 1) -> Measured:
    world = load_world(run, pick_device())
    frames, actions = start_clip(run, world)
    with torch.inference_mode():
        state = world.reset(
            frames[None].expand(worlds, *frames.shape),
            actions[None, : len(frames) - 1].expand(worlds, *actions[: len(frames) - 1].shape),
        )
        latents = world.encode(frames[None, -1])
        goal = latents.expand(worlds, *latents.shape[1:])
        plan = partial(Planner(config, world).plan, state, goal, None)
        plan()
        return Measured(part, "a plan, s", size, _seconds(plan))


def _seconds(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(STEPS):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return median(taken)
