"""Weights of dynamics in 8 bits, on a CPU: how much faster play is, and what that costs.

The cost is that of the open loop on held-out windows, the same for both: PSNR, mean of the
horizons, and delta-PSNR four steps ahead (evaluation/measures/open_loop.py), exact minus int8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.pairs import EXACT, INT8, Options, Row, Wrong, compare, race, value
from bench.play_speed import GIVEN, check_world, start_of
from data.clips import Clips
from data.shards import Recordings
from evaluation.measures.open_loop import HORIZONS, open_loop
from models.world import World
from pipeline.inference.load import load_world

AREA = "int8"


def rows(options: Options) -> Iterator[Row]:
    """Race frames of play; then imagine the run's held-out windows, if its recordings are there."""
    if options.device.type != "cpu":
        return
    run = options.run or GIVEN
    exact = load_world(run, options.device)
    narrow = load_world(run, options.device, int8=True)
    frames, actions = start_of(run, exact)
    check_world(narrow, frames, actions)
    worlds = {EXACT: exact, INT8: narrow}
    runners = {name: playing(world, frames, actions) for name, world in worlds.items()}
    seconds = race(runners, options.rounds, device=options.device)
    steps = len(actions) - len(frames) + 1
    yield from compare(AREA, f"play {run.name}", seconds, {}, INT8, "frames/s", steps)
    what = f"{run.name}, lost by int8"
    if not any((run / "shards").glob("shard-*.h5")):
        note = "not measured: --run RUN with its shards"
        yield Row(AREA, what, EXACT, "dB", note=note)
        return
    yield from losses(worlds, Recordings(run / "shards"), what, 32 if options.quick else 256)


def playing(world: World, frames: Tensor, actions: Tensor) -> Callable[[], None]:
    """Play from the same start through the same actions."""
    context = len(frames)

    @torch.inference_mode()
    def play() -> None:
        state = world.reset(frames[None], actions[None, : context - 1])
        for action in actions[context - 1 :]:
            state = world.step(state, action[None])
            world.decode(state)

    return play


def losses(
    worlds: dict[str, World], recordings: Recordings, what: str, windows: int
) -> Iterator[Row]:
    """PSNR and delta-PSNR, in dB, exact minus int8."""
    clips = Clips(recordings, "test", worlds[INT8].context + max(HORIZONS))
    exact, narrow = (
        open_loop(worlds[name], clips, HORIZONS, windows=windows) for name in (EXACT, INT8)
    )
    four = HORIZONS.index(4)
    mean = [sum(found["psnr"]) / len(HORIZONS) for found in (exact, narrow)]
    if mean[0] - mean[1] > 3:
        raise Wrong(f"int8 weights lose {mean[0] - mean[1]:.1f} dB: this is another model")
    note = f"{exact['n']} windows of {exact['sources']} sources"
    yield value(AREA, f"{what}, PSNR", "dB", mean[0] - mean[1], EXACT, note=note)
    lost = exact["delta_psnr"][four] - narrow["delta_psnr"][four]
    yield value(AREA, f"{what}, delta-PSNR(4)", "dB", lost, EXACT, note=note)
