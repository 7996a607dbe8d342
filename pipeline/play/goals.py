"""What is acted towards in play: a later frame of the dataset, the run's task, or images.

Letters: G goals, N codes or P patches of D numbers, H rows, W columns.  Images are (H, W, 3) uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.clips import Clips
from data.formats.decode_image import decode_image
from data.formats.image_folders import SUFFIXES
from data.formats.numpy_files import open_file
from data.io.folders import has_suffix, visible_files
from data.io.messages import command
from data.shards.episode_dataset import EpisodeDataset
from models.controllers.task_cost import TaskCost
from models.planning.goal_set import MIN_TO_WHITEN, goal_set_distance
from models.planning.plan import Objective
from models.planning.planner import can_plan
from models.world import World
from pipeline.inference.load_controllers import load_task_cost
from pipeline.play.player import Start

DATASET, TASK = "dataset", "task"  # names of goals that are no file
NUM_SAMPLES = 500  # frames that show the scale of the data
ASPECT_TOLERANCE = 0.02  # of an image's width over its height


@dataclass(frozen=True)
class Goal:
    name: str
    """As in "towards NAME"."""
    latents: Tensor
    """(1, N) or (1, P, D) of a goal that has a time, else of a set, (1, G, N) or (1, G, P, D); in
    their place the pose, where there is one."""
    image: np.ndarray
    """(H, W, 3) uint8; the mean of a set's."""
    objective: Objective | None = None
    """What a planner lowers, if not the distance from the latents."""
    action_block: int | None = None
    """Actions of a block that the objective asks about."""
    pose: Tensor | None = None
    """(1, 3), of the block, where the start's episode has a goal of its own."""
    is_task: bool = False
    """It is reached where the task is solved."""
    has_time: bool = False
    """It is that of a known step: whole plans lead there.  Others are replanned all the time."""


def find_goal(
    names: Sequence[str],
    run: Path,
    world: World,
    dataset: EpisodeDataset,
    start: Start,
    offset: int,
) -> Goal:
    """Return the goal of --goal; offset: steps of the dataset from the start to a goal in it."""
    if DATASET in names or TASK in names:
        (name,) = names
        if name == DATASET:
            return dataset_goal(world, start, offset)
        goal = task_goal(run, world)
        return goal if start.goal is None else own_task_goal(goal, run, start)
    return image_goal(world, image_files(names), dataset)


def image_files(names: Sequence[str]) -> list[Path]:
    """Return the image files of --goal: those named, and those in a folder that is named."""
    files: list[Path] = []
    for path in map(Path, names):
        if not path.is_dir():
            files.append(path)
            continue
        found = [file for file in visible_files(path) if has_suffix(file, SUFFIXES)]
        if not found:
            raise ValueError(f"{path} holds no image ({', '.join(SUFFIXES)}); name image files")
        files += found
    return files


def dataset_goal(world: World, start: Start, offset: int) -> Goal:
    """Return the dataset's frame `offset` steps after the start, or its last."""
    last = len(start.next_frames)
    if offset > last:
        print(f"play: the goal is {last} steps ahead, where the episode ends")
    image = start.next_frames[min(offset, last) - 1]
    name = f"the dataset's frame {min(offset, last)} steps ahead"
    return Goal(name, world.embed(as_frames([image])), image, has_time=True)


@torch.no_grad()
def task_goal(run: Path, world: World) -> Goal:
    """Return the task that the run has rewards of; ValueError says what learns its cost."""
    cost = load_task_cost(run, world)
    if cost is None and not can_plan(world):
        raise ValueError(
            "--goal task: the cost of a task needs a world of continuous latents and actions "
            "(--preset keypoints), and this one has codes"
        )
    if cost is None:
        train = command("train_controller.py", "--run", run, "--methods", "task_cost")
        raise ValueError(f"{run / 'controller/task_cost'} holds no task cost; {train} trains one")
    drawn = world.decode(world.start_from(cost.goals[:, None], _no_actions(world, cost.goals)))
    image = _mean_image(drawn.permute(0, 2, 3, 1).cpu().numpy())
    block = cost.config.action_block
    return Goal("the task", cost.goals[None], image, cost, block, is_task=True)


def own_task_goal(goal: Goal, run: Path, start: Start) -> Goal:
    """Give the task the goal of the start's own episode, which is drawn in its frames."""
    if not isinstance(goal.objective, TaskCost) or not goal.objective.frame.is_known:
        train = command("train_controller.py", "--run", run, "--methods", "task_cost", "--restart")
        raise ValueError(f"--goal task: the run's task cost knows one goal alone; {train} mends it")
    assert start.goal is not None
    pose = torch.tensor(start.goal[None], dtype=torch.float32, device=goal.latents.device)
    return replace(goal, latents=pose, pose=pose, image=start.frames[-1])


@torch.no_grad()
def image_goal(world: World, paths: Sequence[Path], dataset: EpisodeDataset) -> Goal:
    """Return image files as a goal: reaching any of them will do."""
    images = [read_goal_image(path, world.image_size) for path in paths]
    latents = world.embed(as_frames(images))
    if len(images) == 1:
        return Goal(str(paths[0]), latents[None], images[0])
    sample = None
    if len(images) >= MIN_TO_WHITEN:
        clips = Clips(dataset, "train", clip_length=1, memory_limit=0)
        spaced = np.linspace(0, len(clips) - 1, min(NUM_SAMPLES, len(clips))).round()
        parts = np.array_split(spaced.astype(np.int64), -(-len(spaced) // 100))
        sample = torch.cat([world.embed(clips.batch(part).frames[:, 0]) for part in parts])
    objective = goal_set_distance(world, latents, sample)
    name = f"any of {len(images)} images"
    return Goal(name, latents[None], _mean_image(np.stack(images)), objective)


def read_goal_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read an image file at the size of a frame, (H, W); each pixel is the mean of its area."""
    with open_file(path) as file:
        image = decode_image(file.read(), str(path))
    (height, width), (rows, columns) = size, image.shape[:2]
    if abs(columns / rows * height / width - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"{path} has {columns} x {rows} pixels, and a frame of this world {width} x {height}; "
            f"cut the image to the same aspect ratio"
        )
    if rows < height or columns < width:
        raise ValueError(
            f"{path} has {columns} x {rows} pixels, fewer than a frame of this world, "
            f"{width} x {height}; give a larger image"
        )
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def as_frames(images: Sequence[np.ndarray]) -> Tensor:
    """Images (H, W, 3) -> (G, 3, H, W)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def _no_actions(world: World, goals: Tensor) -> Tensor:
    return torch.zeros(len(goals), 0, world.actions.size, device=goals.device)


def _mean_image(images: np.ndarray) -> np.ndarray:
    """(G, H, W, 3) -> (H, W, 3): sharp where they agree."""
    return images.mean(0).round().astype(np.uint8)
