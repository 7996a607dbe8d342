"""Watch a video through a served run, and mark the moments that it did not expect.

Reads   VIDEO, and a service that serve.py runs.
Writes  OUT, a plot of the surprise over time with the frames of its highest moments.
Try     python -m pipeline.client.watch_video film.mp4 --out surprise.png
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # a script, or a worker process of one
    from pipeline.startup import start

    start(__name__)

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from tqdm import tqdm

from data.formats.video_files import every_frame
from data.ranges import CheckedConfig, Range
from pipeline.cli import run_cli
from pipeline.client.answers import Spec
from pipeline.client.async_client import AsyncLatentClient
from pipeline.client.errors import ServiceError
from pipeline.client.perception import Perception, VisionState


@dataclass(frozen=True)
class Config(CheckedConfig):
    video: Path
    """Video file; its frames follow each other without an action."""
    url: str = "http://127.0.0.1:8001"
    """Where serve.py serves a run that predicts transformations (--preset iwm)."""
    key: str = ""
    """Its --server.key."""
    every: Annotated[int, Range(1, 10**6)] = 1
    """Frames from one that is looked at to the next."""
    marks: Annotated[int, Range(1, 20)] = 5
    """Moments whose frames are drawn."""
    out: Path = Path("surprise.png")
    """Where the plot is written."""


async def watch(
    config: Config, count: int, frames: Iterable[np.ndarray]
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """The surprise of each of `count` frames, (T,), nan where nothing was predicted; and the frames
    of the highest, (H, W, 3) uint8: of the others none is kept."""
    surprises, kept = np.full(count, np.nan), {}
    async with AsyncLatentClient(config.url, config.key) as client:
        _check(await client.spec())
        perception, state = Perception(client), VisionState()
        for t, frame in enumerate(tqdm(frames, "watch", count)):
            if not await perception.process_frame(frame, state):
                raise ServiceError(perception.last_error)
            if state.vision_prediction_surprise is not None:
                surprises[t], kept[t] = state.vision_prediction_surprise, frame
            if len(kept) > config.marks:
                del kept[min(kept, key=lambda t: surprises[t])]
    return surprises, kept


def _check(spec: Spec) -> None:
    """Refuse a run that cannot say what follows a frame where nothing is done."""
    kind, cannot = spec.spec["actions"]["kind"], spec.spec["cannot"]
    if "predict" in cannot:
        raise ServiceError(str(cannot["predict"]))
    if kind != "transformation":
        raise ServiceError(
            f"run {spec.spec['run']} has {kind} actions, which a video has not; a video needs a "
            f"run that predicts transformations (--preset iwm)"
        )


def draw(config: Config, surprises: np.ndarray, marked: dict[int, np.ndarray]) -> None:
    """Write the plot, with the frames that are marked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    highest = sorted(marked)
    figure = plt.figure(figsize=(10, 4.5), layout="constrained")
    grid = figure.add_gridspec(2, max(1, len(highest)), height_ratios=(2, 1))
    axes = figure.add_subplot(grid[0, :])
    times = np.arange(len(surprises)) * config.every
    axes.plot(times, surprises, linewidth=1)
    axes.scatter(times[highest], surprises[highest], color="tab:red", zorder=3)
    axes.set(xlabel="frame", ylabel="surprise (L2)")
    for column, t in enumerate(highest):
        small = figure.add_subplot(grid[1, column])
        small.imshow(marked[t])
        small.set_title(f"{times[t]}: {surprises[t]:.2f}", fontsize=9)
        small.axis("off")
    figure.savefig(config.out)
    plt.close(figure)


def main(config: Config) -> None:
    if not config.video.exists():
        raise ValueError(f"{config.video} is not there; give a video file")
    if not config.out.parent.is_dir():
        raise ValueError(f"--out {config.out}: there is no folder {config.out.parent}; make it")
    count, frames = every_frame(config.video, config.every)
    if count < 2:
        raise ValueError(
            f"--every {config.every} leaves {count} frame of {config.video}, and a surprise needs "
            f"2; lower --every"
        )
    try:
        surprises, marked = asyncio.run(watch(config, count, frames))
    except ServiceError as problem:
        raise ValueError(f"{config.url}: {problem}; python serve.py --run RUN serves one") from None
    draw(config, surprises, marked)
    at = ", ".join(str(t * config.every) for t in sorted(marked))
    print(f"watch: {count} frames, the most surprising are {at}; {config.out}")


if __name__ == "__main__":
    run_cli(main, Config)
