"""Dynamics with int8 weights, on a CPU: how much faster play is, and what quality that costs.

The cost is measured open loop on the same held-out clips: PSNR, mean over horizons, and delta-PSNR
four steps ahead (evaluation/measures/open_loop.py), exact minus int8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.areas.play_speed import DEFAULT_RUN, check_world, start_clip
from bench.races.pairs import EXACT, INT8, Incorrect, Options, Row, compare, race, value_row
from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from evaluation.measures.open_loop import HORIZONS, open_loop
from models.world import World
from pipeline.inference.load_world import load_world

AREA = "int8"


def rows(options: Options) -> Iterator[Row]:
    """Race frames of play; then predict the run's held-out clips, if it has shards."""
    if options.device.type != "cpu":
        return
    run = options.run or DEFAULT_RUN
    exact = load_world(run, options.device)
    int8_world = load_world(run, options.device, int8=True)
    frames, actions = start_clip(run, exact)
    check_world(int8_world, frames, actions)
    worlds = {EXACT: exact, INT8: int8_world}
    runners = {name: play_fn(world, frames, actions) for name, world in worlds.items()}
    seconds = race(runners, options.rounds, device=options.device)
    steps = len(actions) - len(frames) + 1
    yield from compare(AREA, f"play {run.name}", seconds, {}, INT8, "frames/s", steps)
    what = f"{run.name}, loss by int8"
    if not any((run / "shards").glob("shard-*.h5")):
        note = "not measured: needs --run RUN with its shards"
        yield Row(AREA, what, EXACT, "dB", note=note)
        return
    yield from quality_rows(
        worlds, EpisodeDataset(run / "shards"), what, 32 if options.quick else 256
    )


def play_fn(world: World, frames: Tensor, actions: Tensor) -> Callable[[], None]:
    """Return a function that plays from the same start through the same actions."""
    context = len(frames)

    @torch.inference_mode()
    def play() -> None:
        state = world.reset(frames[None], actions[None, : context - 1])
        for action in actions[context - 1 :]:
            state = world.step(state, action[None])
            world.decode(state)

    return play


def quality_rows(
    worlds: dict[str, World], dataset: EpisodeDataset, what: str, num_clips: int
) -> Iterator[Row]:
    """Measure PSNR and delta-PSNR, in dB, exact minus int8."""
    clips = Clips(dataset, "test", worlds[INT8].context + max(HORIZONS))
    exact_result, int8_result = (
        open_loop(worlds[name], clips, HORIZONS, num_clips=num_clips) for name in (EXACT, INT8)
    )
    four = HORIZONS.index(4)
    mean = [sum(found["psnr"]) / len(HORIZONS) for found in (exact_result, int8_result)]
    if mean[0] - mean[1] > 3:
        raise Incorrect(f"int8 weights lose {mean[0] - mean[1]:.1f} dB, at most 3 are allowed")
    note = f"{exact_result['n']} clips of {exact_result['sources']} sources"
    yield value_row(AREA, f"{what}, PSNR", "dB", mean[0] - mean[1], EXACT, note=note)
    lost = exact_result["delta_psnr"][four] - int8_result["delta_psnr"][four]
    yield value_row(AREA, f"{what}, delta-PSNR(4)", "dB", lost, EXACT, note=note)
