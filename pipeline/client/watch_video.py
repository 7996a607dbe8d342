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
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from tqdm import tqdm

from data.formats.video_files import frames_of
from data.ranges import CheckedConfig, Range
from pipeline.cli import run_cli
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


async def watch(config: Config, frames: np.ndarray) -> np.ndarray:
    """The surprise of each frame, (T,); nan where nothing was predicted."""
    surprises = np.full(len(frames), np.nan)
    async with AsyncLatentClient(config.url, config.key) as client:
        perception, state = Perception(client), VisionState()
        for t, frame in enumerate(tqdm(frames, "watch")):
            if not await perception.process_frame(frame, state):
                raise ServiceError(perception.last_error)
            if state.vision_prediction_surprise is not None:
                surprises[t] = state.vision_prediction_surprise
    return surprises


def draw(config: Config, frames: np.ndarray, surprises: np.ndarray) -> list[int]:
    """Write the plot; return the frames that are marked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    known = np.where(np.isnan(surprises), -np.inf, surprises)
    highest = sorted(int(t) for t in known.argsort()[::-1][: config.marks] if known[t] > -np.inf)
    figure = plt.figure(figsize=(10, 4.5), layout="constrained")
    grid = figure.add_gridspec(2, max(1, len(highest)), height_ratios=(2, 1))
    axes = figure.add_subplot(grid[0, :])
    times = np.arange(len(surprises)) * config.every
    axes.plot(times, surprises, linewidth=1)
    axes.scatter(times[highest], surprises[highest], color="tab:red", zorder=3)
    axes.set(xlabel="frame", ylabel="surprise (L2)")
    for column, t in enumerate(highest):
        small = figure.add_subplot(grid[1, column])
        small.imshow(frames[t])
        small.set_title(f"{times[t]}: {surprises[t]:.2f}", fontsize=9)
        small.axis("off")
    figure.savefig(config.out)
    plt.close(figure)
    return highest


def main(config: Config) -> None:
    if not config.video.exists():
        raise ValueError(f"{config.video} is not there; give a video file")
    column = frames_of(config.video)
    frames = column.read(0, column.shape[0])[:: config.every]
    try:
        surprises = asyncio.run(watch(config, frames))
    except ServiceError as problem:
        raise ValueError(f"{config.url}: {problem}; python serve.py --run RUN serves one") from None
    marked = draw(config, frames, surprises)
    at = ", ".join(str(t * config.every) for t in marked)
    print(f"watch: {len(frames)} frames, the most surprising are {at}; {config.out}")


if __name__ == "__main__":
    run_cli(main, Config)
