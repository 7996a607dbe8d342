"""What the latent actions of a world mean, by every measure that the data allows.

Letters: n steps, B clips of a batch, C codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.clips import Clip
from data.shards.episode_dataset import EpisodeDataset
from evaluation.measures.action_probe import action_probe
from evaluation.measures.clustering import code_use, compare_codes
from evaluation.measures.consistency import cross_episode_cosines
from evaluation.measures.drawn_actions import drawn_action_psnr
from evaluation.measures.sample_clips import sample_clips
from evaluation.measures.world_clips import InferredClips, horizons_within
from evaluation.readers.estimator import StateEstimator
from evaluation.readers.label_budget import measure_action_map
from evaluation.readers.transitions import (
    Transitions,
    agent_columns,
    read_transitions,
    world_size,
)
from models.action_map import ActionMap
from models.dynamics.dynamics import State
from models.world import World
from pipeline.inference.action_effects import measure_effects
from pipeline.inference.image_motion import image_motion

DELTA_STEPS = 4  # of Genie's delta-PSNR
BATCH_SIZE = 32
STEPS_PER_CLIP = 8  # held-out steps that codes are compared on, for each clip that is rolled out
MIN_IMAGE_MOTION = 1 / 64  # of the width
EFFECT_STARTS = 64  # clips that each action is tried in


def measure_latent_actions(
    world: World,
    dataset: EpisodeDataset,
    train_dataset: EpisodeDataset,
    num_clips: int = 256,
    reader_steps: int = 400,
    estimator: StateEstimator | None = None,
    maps: dict[int, ActionMap] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure on held-out episodes; what needs true actions is None where the data has none.

    reader_steps: training steps of the networks that give the probe its floor and its ceiling.
    maps: from latent to true actions, by their budget of labels.
    """
    count = STEPS_PER_CLIP * num_clips
    test = read_transitions(world, dataset, "test", count, seed)
    use = code_use(test.codes, world.actions.size)
    labels = test.labels()
    result: dict[str, Any] = {"n": len(test), "sources": len(np.unique(test.sources)), **use}
    result["clustering"] = (
        None
        if labels is None
        else compare_codes(test.codes, labels, test.sources, world.actions.size, seed)
    )
    result["probe"] = None
    if labels is not None and train_dataset.episodes("train"):
        train = read_transitions(world, train_dataset, "train", count, seed)
        result["probe"] = action_probe(train, test, reader_steps, seed, world.device)
    result["label_budget"] = {
        str(budget): measure_action_map(found, test) for budget, found in (maps or {}).items()
    }
    if world.has_decoder:
        frequencies = np.array(use["frequencies"])
        best_map = maps[max(maps)] if maps else None
        result |= rollout_measures(
            world, dataset, frequencies, num_clips, seed, estimator, test, best_map
        )
    return result


def rollout_measures(
    world: World,
    dataset: EpisodeDataset,
    frequencies: np.ndarray,
    num_clips: int,
    seed: int,
    estimator: StateEstimator | None,
    test: Transitions,
    action_map: ActionMap | None,
) -> dict[str, Any]:
    """Give `consistency` of codes over episodes, by image and by state, `effects` of each code, and
    `delta_psnr` of inferred against drawn ones."""
    clips = InferredClips(world, dataset, "test", world.context + 1)
    indices, sources = sample_clips(clips, num_clips, seed)
    states: list[State] = []
    codes, pairs = [], []
    with torch.inference_mode():
        for part in np.array_split(indices, -(-len(indices) // BATCH_SIZE)):
            clip = clips.batch(part)
            context = clip.frames[:, :-1].to(world.device)
            states.append(world.reset(context, clip.actions[:, :-2].to(world.device)))
            codes.append(clip.actions[:, -2])
            pairs.append(image_motion(clip.frames[:, -2], clip.frames[:, -1]))
    all_codes, by_image = torch.cat(codes).numpy(), torch.cat(pairs).numpy()
    consistency = {
        "by_image": cross_episode_cosines(
            world, states, all_codes, by_image, image_motion, sources, MIN_IMAGE_MOTION
        ),
        "by_state": _by_state(world, dataset, states, all_codes, indices, sources, estimator, test),
    }
    # spaced: clips are in order of their episodes
    every = max(1, len(indices) // EFFECT_STARTS)
    spaced = [state.select(torch.arange(0, len(state), every)) for state in states]
    effects = measure_effects(world, spaced)
    (steps,) = horizons_within(dataset, "test", world.context, [DELTA_STEPS])
    drawn = drawn_action_psnr(
        world,
        InferredClips(world, dataset, "test", world.context + steps),
        frequencies,
        steps,
        num_clips,
        seed,
        None if action_map is None else mapped_by(action_map, dataset),
    )
    return {
        "consistency": consistency,
        "effects": {
            "n": effects.n,
            "motion": effects.motion.tolist(),
            "consistency": effects.consistency.tolist(),
        },
        "delta_psnr": drawn,
    }


def _by_state(
    world: World,
    dataset: EpisodeDataset,
    states: list[State],
    codes: np.ndarray,
    indices: np.ndarray,
    sources: np.ndarray,
    estimator: StateEstimator | None,
    test: Transitions,
) -> dict[str, Any] | None:
    """The agent's displacement by its true states, and by the state estimator in the world."""
    columns, size = agent_columns(dataset), world_size(dataset)
    if estimator is None or columns is None:
        return None
    clips = InferredClips(world, dataset, "test", world.context + 1)
    rows = clips.rows(indices)[:, -2:]
    places = clips.column("states", rows)
    assert places is not None
    moved = (places[:, 1] - places[:, 0])[:, columns].numpy() / size

    def read(before: Tensor, after: Tensor) -> Tensor:
        found = estimator.predict(after) - estimator.predict(before)
        return (found[:, columns] / size).cpu()

    return cross_episode_cosines(world, states, codes, moved, read, sources, test.still)


def mapped_by(action_map: ActionMap, dataset: EpisodeDataset):
    """Give what turns the true actions of clips into codes."""
    columns = agent_columns(dataset)

    def to_codes(clip: Clip) -> Tensor:
        places = None
        if action_map.needs_place:
            assert clip.states is not None and columns is not None
            places = clip.states[..., columns].flatten(0, 1)
        mapped = action_map.to_latent(clip.actions.flatten(0, 1), places)
        return mapped.unflatten(0, clip.actions.shape[:2])

    return to_codes
