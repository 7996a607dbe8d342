"""Frames per second of one stream of play, every frame decoded to bytes in main memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.races.pairs import Incorrect, Options, Row, value_row
from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from evaluation.measures.speed import measure_play
from models.world import World
from pipeline.cuda_graph import WARMUP_CALLS, CudaGraphedWorld
from pipeline.inference.aot_inductor import pick_compile_fn
from pipeline.inference.load_world import load_world

AREA = "play"
DEFAULT_RUN = Path(__file__).parents[2] / "checkpoints" / "pusht-goals"
TARGET, STRETCH = 30.0, 60.0
GPU_TARGET, GPU_STRETCH = 120.0, 400.0
PUBLISHED = "published: Dreamer-MC 20, IWS 15 frames/s"
NUM_FRAMES = 8  # frames of a rollout that are compared
TOLERANCE = 0.2  # of 255, mean over a frame: above bf16's error, below that of a wrong action


def rows(options: Options) -> Iterator[Row]:
    """Measure play at batch 1, in --run or the run in checkpoints/."""
    run = options.run or DEFAULT_RUN
    world = load_world(run, options.device)
    frames, actions = start_clip(run, world)
    check_world(world, frames, actions)
    on_gpu = options.device.type == "cuda"
    target, stretch = (GPU_TARGET, GPU_STRETCH) if on_gpu else (TARGET, STRETCH)
    variants: dict[str, World | CudaGraphedWorld] = {
        "": CudaGraphedWorld(world) if on_gpu else world
    }
    if not on_gpu and not options.quick:
        compiled_world = load_world(run, options.device)
        compiled_world.compile_steps(pick_compile_fn(options.device))
        variants[", compiled"] = compiled_world
    for variant in variants.values():
        if variant is not world:
            check_rollout(variant, world, frames, actions)
    steps = 120 if options.quick else 400
    for name, variant in variants.items():
        timed: Any = variant  # both step and decode alike
        measured = measure_play(timed, frames, actions, num_steps=steps)
        median, p95 = measured["latency_ms_p50"], measured["latency_ms_p95"]
        note = f"{median:.1f} ms a frame, 95% within {p95:.1f} ms"
        if on_gpu:
            note += f"; {PUBLISHED}"
        what = f"play {run.name}, {world.image_size[0]} x {world.image_size[1]}{name}"
        rate = measured["frames_per_second"]
        yield value_row(
            AREA, what, "frames/s", rate, target=target, stretch=stretch, rounds=steps, note=note
        )


def start_clip(run: Path, world: World, extra_actions: int = 16) -> tuple[Tensor, Tensor]:
    """Return real context, (T, 3, H, W) uint8, and actions from its first frame on, (n, ...).

    They come from the run's own shards if it has them, else from the toy world, whose actions are
    Push-T's: speed does not depend on the images.
    """
    if any((run / "shards").glob("shard-*.h5")):
        return _first_clip(EpisodeDataset(run / "shards"), world, extra_actions)
    with TemporaryDirectory() as folder:
        length = world.context + extra_actions + 8
        dataset = EpisodeDataset(write_toy_shards(folder, 6, length, world.image_size[0]))
        world.actions.check_same(dataset.actions, str(run), "the toy world")
        return _first_clip(dataset, world, extra_actions)


def _first_clip(dataset: EpisodeDataset, world: World, extra_actions: int) -> tuple[Tensor, Tensor]:
    clip = Clips(dataset, "train", world.context + extra_actions).batch(np.array([0]))
    return clip.frames[0, : world.context], clip.actions[0]


@torch.inference_mode()
def check_world(world: World, frames: Tensor, actions: Tensor) -> None:
    """Raise Incorrect unless a predicted frame is bytes of the right shape, and not all one
    color."""
    context = len(frames)
    state = world.reset(frames[None], actions[None, : context - 1])
    frame = world.decode(world.step(state, actions[None, context - 1].to(world.device)))
    if frame.dtype != torch.uint8 or frame.shape != (1, 3, *world.image_size):
        raise Incorrect(f"a frame is {tuple(frame.shape)} of {frame.dtype}")
    if frame.float().std() < 1:
        raise Incorrect("a predicted frame is all one color")


def check_rollout(
    timed: World | CudaGraphedWorld, plain: World, frames: Tensor, actions: Tensor
) -> None:
    """Raise Incorrect unless both predict the same frames from the same start."""
    plain_frames = rollout_frames(plain, frames, actions)
    for _ in range(WARMUP_CALLS + 1):  # from then on, each shape of a step is a graph replay
        timed_frames = rollout_frames(timed, frames, actions)
    error = (timed_frames - plain_frames).abs().flatten(1).mean(1)
    if not error.max() <= TOLERANCE:
        number = int(error.argmax()) + 1
        raise Incorrect(
            f"frame {number} is {error.max():.2f} of 255 off the plain world's, {TOLERANCE} allowed"
        )


@torch.inference_mode()
def rollout_frames(world: World | CudaGraphedWorld, frames: Tensor, actions: Tensor) -> Tensor:
    """Predict (NUM_FRAMES, 3, H, W), float."""
    context = len(frames)
    state = world.reset(frames[None], actions[None, : context - 1])
    decoded = []
    for action in actions[context - 1 :][:NUM_FRAMES].to(world.device):
        state = world.step(state, action[None])
        decoded.append(world.decode(state)[0].float().cpu())
    return torch.stack(decoded)
