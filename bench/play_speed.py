"""Frames a second of one stream of play, every frame decoded to bytes in main memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from bench.pairs import Options, Row, Wrong, value
from data.clips import Clips
from data.shards import Recordings
from data.toy import write_toy_shards
from evaluation.measures.speed import measure_play
from models.world import World
from pipeline.graphed import WARM_UP
from pipeline.inference.aot_inductor import compiler_for
from pipeline.inference.load import load_world
from pipeline.inference.recorded import RecordedWorld

AREA = "play"
GIVEN = Path(__file__).parents[1] / "checkpoints" / "pusht-goals"
BAR, AIM = 30.0, 60.0
GPU_BAR, GPU_AIM = 120.0, 400.0
PUBLISHED = "published: Dreamer-MC 20, IWS 15 frames/s"
FILM = 8  # frames that are compared
NEAR = 0.2  # of 255, mean over a frame: bf16 for fp32 makes 0.05, another action 0.45 and more


def rows(options: Options) -> Iterator[Row]:
    """Batch 1, in the run that was named, else in the world that comes with the project."""
    run = options.run or GIVEN
    world = load_world(run, options.device)
    frames, actions = start_of(run, world)
    check_world(world, frames, actions)
    on_gpu = options.device.type == "cuda"
    bar, aim = (GPU_BAR, GPU_AIM) if on_gpu else (BAR, AIM)
    ways: dict[str, World | RecordedWorld] = {"": RecordedWorld(world) if on_gpu else world}
    if not on_gpu and not options.quick:
        swift = load_world(run, options.device)
        swift.compile_steps(compiler_for(options.device))
        ways[", compiled"] = swift
    for way in ways.values():
        if way is not world:
            check_film(way, world, frames, actions)
    steps = 120 if options.quick else 400
    for name, way in ways.items():
        seen = measure_play(way, frames, actions, steps=steps)
        usual, late = seen["latency_ms_p50"], seen["latency_ms_p95"]
        note = f"{usual:.1f} ms a frame, 95% within {late:.1f} ms"
        if on_gpu:
            note += f"; {PUBLISHED}"
        what = f"play {run.name}, {world.image_size[0]} x {world.image_size[1]}{name}"
        rate = seen["frames_per_second"]
        yield value(AREA, what, "frames/s", rate, bar=bar, aim=aim, rounds=steps, note=note)


def start_of(run: Path, world: World, more: int = 16) -> tuple[Tensor, Tensor]:
    """Real context, (T, 3, H, W) uint8, and actions from there on, (n, ...).

    From the run's own shards where they are there, else from the toy world's, which has Push-T's
    actions: speed does not depend on what is seen.
    """
    if any((run / "shards").glob("shard-*.h5")):
        return _first_clip(Recordings(run / "shards"), world, more)
    with TemporaryDirectory() as folder:
        length = world.context + more + 8
        recordings = Recordings(write_toy_shards(folder, 6, length, world.image_size[0]))
        world.actions.check_same(recordings.actions, str(run), "the toy world")
        return _first_clip(recordings, world, more)


def _first_clip(recordings: Recordings, world: World, more: int) -> tuple[Tensor, Tensor]:
    clip = Clips(recordings, "train", world.context + more).batch(np.array([0]))
    return clip.frames[0, : world.context], clip.actions[0]


@torch.inference_mode()
def check_world(world: World, frames: Tensor, actions: Tensor) -> None:
    """Hold an imagined frame to what it has to be: bytes of the right shape, not all one colour."""
    context = len(frames)
    state = world.reset(frames[None], actions[None, : context - 1])
    seen = world.decode(world.step(state, actions[None, context - 1].to(world.device)))
    if seen.dtype != torch.uint8 or seen.shape != (1, 3, *world.image_size):
        raise Wrong(f"a frame is {tuple(seen.shape)} of {seen.dtype}")
    if seen.float().std() < 1:
        raise Wrong("an imagined frame is all one colour")


def check_film(timed: World | RecordedWorld, plain: World, frames: Tensor, actions: Tensor) -> None:
    """Raise Wrong unless both imagine the same film from the same start."""
    exact = film(plain, frames, actions)
    for _ in range(WARM_UP + 1):  # each shape of a step is replayed from then on
        seen = film(timed, frames, actions)
    off = (seen - exact).abs().flatten(1).mean(1)
    if not off.max() <= NEAR:
        number = int(off.argmax()) + 1
        raise Wrong(
            f"frame {number} is {off.max():.2f} of 255 off the plain world's, {NEAR} allowed"
        )


@torch.inference_mode()
def film(world: World | RecordedWorld, frames: Tensor, actions: Tensor) -> Tensor:
    """(FILM, 3, H, W), float."""
    context = len(frames)
    state = world.reset(frames[None], actions[None, : context - 1])
    seen = []
    for action in actions[context - 1 :][:FILM].to(world.device):
        state = world.step(state, action[None])
        seen.append(world.decode(state)[0].float().cpu())
    return torch.stack(seen)
