"""Draw strips of small runs: recordings of pages, a fault, the task.

Reads   the blocks of docs/how-to/add-a-source.md and your-recordings.md; RUNS, with what
        docs/make/debug_training.py makes in RUNS/debugging.
Writes  docs/images/: dot-strip, square-strip, cartpole-strip, copies-strip, task-strip (.svg);
        RUNS/task, frames of an episode.
Try     python docs/make/run_figures.py RUNS
        python docs/make/run_figures.py RUNS dot square cartpole task
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from drawing import ROOT
from strips import Row, Strip, rows_last

sys.path[:0] = [str(ROOT)]

from data.clips import Clips  # noqa: E402
from data.shards.episode_dataset import EpisodeDataset  # noqa: E402
from pipeline.inference.load_world import load_world  # noqa: E402

MOVES = {0: (0, 0), 1: (0, -1), 2: (0, 1), 3: (-1, 0), 4: (1, 0)}


def block(page: str, folder: str, number: int = 0) -> None:
    """Run a Python block of a page in a folder."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL)
    subprocess.run([sys.executable, "-c", code[number]], cwd=folder, check=True,
                   env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip


def dot(runs: Path) -> Strip:
    """An episode of the source of docs/how-to/add-a-source.md."""
    with tempfile.TemporaryDirectory() as folder:
        block("how-to/add-a-source", folder)
        dataset = EpisodeDataset(Path(folder) / "runs/dot/shards")
        frames, actions = (dataset.read(0, name, 0, 8) for name in ("frames", "actions"))
    return Strip(
        "Eight frames of a dot, and the action between each and the next",
        [Row("frames[t], and actions[t] below", frames, [("left", "right")[a] for a in actions],
             [(2.0 * a - 1, 0) for a in actions])],
        notes=["Episode 0 of the source below: each action moves the dot in the next frame."],
        quality=100,
    )  # fmt: skip


def square(runs: Path) -> Strip:
    """An episode of the recorder of docs/how-to/your-recordings.md."""
    with tempfile.TemporaryDirectory() as folder:
        block("how-to/your-recordings", folder)
        files = sorted((Path(folder) / "recordings/square").glob("*.npz"))
        held = np.load(files[0])
        frames, actions = held["frames"][:7], held["actions"][:6]
    names = ("stay", "up", "down", "left", "right")
    return Strip(
        "Seven frames of a square, and the action between each and the next",
        [Row("frames[t], and actions[t] below", frames, [names[a] for a in actions],
             [MOVES[int(a)] for a in actions])],
        notes=["What the recorder below writes: 7 frames have 6 actions between them."],
        quality=90,
    )  # fmt: skip


def cartpole(runs: Path) -> Strip:
    """The last frames of an episode, as the world of `dreamer loop` sees them."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["preprocess.py", "gym", "--env", "CartPole-v1", "--run", folder, "--preset",
                 "dreamer", "loop", "--steps", "200", "--num-workers", "1"]  # fmt: skip
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
        dataset = EpisodeDataset(Path(folder) / "shards")
        terminals = [dataset.read(e, "terminals") for e in range(len(dataset))]
        episode = next(e for e, ends in enumerate(terminals) if ends[-1] and len(ends) > 8)
        stop = dataset.length(episode)
        frames, actions, rewards = (
            dataset.read(episode, name, stop - 7, stop) for name in ("frames", "actions", "rewards")
        )
    under = [f"r = {reward:.0f}" for reward in rewards[:-1]] + ["the end"]
    arrows = [(2.0 * a - 1, 0) for a in actions[:-1]]
    return Strip(
        "The last seven frames of an episode of CartPole, with actions and rewards",
        [Row(f"CartPole-v1 at {frames.shape[1]} pixels, pushes, rewards", frames, under, arrows)],
        notes=["The pole falls: the last frame is a terminal, and no action leads on from it."],
        quality=95,
    )  # fmt: skip


def copies(runs: Path) -> Strip:
    """One future, as a sound world imagines it, and one that was trained on late actions."""
    steps = (0, 5, 10, 15, 20)
    rows, number = [], None
    for about, name in (("sound world", "sound"), ("world that copies", "copies")):
        world = load_world(runs / "debugging" / name)
        dataset = EpisodeDataset(runs / "debugging/sound/shards")
        clips = Clips(dataset, "validation", world.context + 20)
        if number is None:
            wanted = np.linspace(0, len(clips) - 1, 300).astype(int)
            found = clips.batch(wanted).frames[:, world.context - 1 :: 5].float()
            number = int(wanted[int(found.diff(dim=1).abs().mean((1, 2, 3, 4)).argmax())])
        clip = clips.batch(np.array([number]))
        if not rows:
            truth = clip.frames[0, [world.context - 1 + step for step in steps]]
            rows.append(Row("true frames", rows_last(truth)))
        state = world.reset(clip.frames[:, : world.context], clip.actions[:, : world.context - 1])
        drawn = [world.decode(state)]
        for action in clip.actions[0, world.context - 1 : world.context + 19]:
            state = world.step(state, action[None])
            drawn.append(world.decode(state))
        rows.append(Row(about, rows_last(torch.cat(drawn)[list(steps)])))
    return Strip(
        "A true future, that of a sound world, and that of a world that copies its last frame",
        rows, heads=["start", *(f"+ {step}" for step in steps[1:])],
        notes=["Both had 400 steps of training; the actions of the second came 15 steps too late."],
    )  # fmt: skip


def task(runs: Path) -> Strip:
    """An episode of the task, solved by best of n in the committed world."""
    out = runs / "task"
    if not (out / "actions.npy").exists():
        words = ["play.py", "--run", "checkpoints/pusht-goals", "--headless", "--observe-simulator",
                 "--goal", "task", "--actions", "best_of_n", "--episode", "1", "--steps", "300",
                 "--out", str(out)]  # fmt: skip
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
    files = sorted((out / "frames").glob("*.png"))
    wanted = np.linspace(0, len(files) - 1, 6).round().astype(int)
    images = [Image.open(files[at]).convert("RGB") for at in wanted]
    rows = []
    for about, left in (("the simulator", 260), ("what the world predicted", 520)):
        panels = [image.crop((left, 24, left + 252, 276)).resize((126, 126)) for image in images]
        rows.append(Row(about, np.stack([np.asarray(panel) for panel in panels])))
    return Strip(
        "Six moments of an episode in which the block is pushed onto the goal",
        rows, heads=[f"step {at}" for at in wanted],
        notes=["The task from a held-out start, solved by best of n in the committed world."],
    )  # fmt: skip


STRIPS: dict[str, Callable[[Path], Strip]] = {
    "dot": dot, "square": square, "cartpole": cartpole, "copies": copies, "task": task,
}  # fmt: skip


def main(runs: Path, chosen: list[str]) -> None:
    for name in chosen or STRIPS:
        with torch.no_grad():
            STRIPS[name](runs).draw(f"{name}-strip.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
