"""Worked examples of changing layers: an imagined future is steered, and a head is ablated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.actions import ActionSpec
from data.batch import Batch
from data.shards.episode_dataset import EpisodeDataset
from evaluation.measures.probe import ridge_predict
from evaluation.measures.steering import find_direction, steering
from evaluation.readers.fit_estimator import sample_frames
from models.dynamics.predictor import Predictor, PredictorConfig
from models.hooks.layer_manipulator import AblateHeads, LayerManipulator
from models.layers.transformer import TransformerConfig
from models.tokenizers.tokenizer import LatentSpec
from models.world import World
from pipeline.inference.load_world import load_world

RUN = Path(__file__).parents[1] / "checkpoints" / "pusht-goals"
LAYER = "transformer.layers.3"


# -- steer an imagined future ------------------------------------------------------------------


@dataclass
class LinearReader:
    """States of frames, by a linear probe of the tokenizer's keypoints."""

    world: World
    latents: Tensor
    states: Tensor

    def predict(self, frames: Tensor) -> Tensor:
        mean, std = self.latents.mean(0), self.latents.std(0) + 1e-6
        center = self.states.mean(0)
        x, known = (self.read(frames) - mean) / std, (self.latents - mean) / std
        return ridge_predict(known, self.states - center, x) + center

    def read(self, frames: Tensor) -> Tensor:
        return self.world.encode(frames).flatten(1).float()


@pytest.fixture(scope="module")
def world() -> World:
    return load_world(RUN, "cpu", precision="fp32")


@pytest.fixture(scope="module")
def dataset() -> EpisodeDataset:
    return EpisodeDataset(RUN / "shards")


@pytest.fixture(scope="module")
def reader(world: World, dataset: EpisodeDataset) -> LinearReader:
    frames, states, _ = sample_frames(dataset, "train", 600)
    return LinearReader(world, world.encode(frames).flatten(1).float(), states)


def test_a_block_in_an_imagined_future_is_steered_and_the_agent_stays(
    world: World, dataset: EpisodeDataset, reader: LinearReader
):
    """The direction is a probe's; the shift rises with the dose, and its interval is beyond 0."""
    left = find_direction(world, dataset, LAYER, "block_x", num_steps=5, num_clips=300)
    found = steering(
        world, reader, dataset, LAYER, left, "block_x", (-20, -10, 0, 10, 20), num_starts=32
    )
    assert found["n"] == 32 and found["increasing"]
    by_dose = {row["dose"]: row["shift"] for row in found["doses"]}
    assert all(shift["mean"] == 0 for shift in by_dose[0].values())
    assert by_dose[-20]["block_x"]["high"] < 0 < by_dose[20]["block_x"]["low"]
    block = by_dose[20]["block_x"]["mean"]
    assert block > 4
    assert all(abs(by_dose[20][name]["mean"]) < block / 3 for name in ("agent_x", "agent_y"))


def test_another_direction_moves_the_agent_and_less_of_the_block(
    world: World, dataset: EpisodeDataset, reader: LinearReader
):
    right = find_direction(world, dataset, LAYER, "agent_x", num_steps=5, num_clips=300)
    found = steering(world, reader, dataset, LAYER, right, "agent_x", (10, 20), num_starts=32)
    shift = found["doses"][1]["shift"]
    assert found["increasing"] and shift["agent_x"]["low"] > 0
    assert abs(shift["block_x"]["mean"]) < shift["agent_x"]["mean"] / 2


def test_a_quantity_that_there_is_not_is_named(world: World, dataset: EpisodeDataset):
    with pytest.raises(ValueError, match="the states have no 'block_z'; there are agent_x"):
        find_direction(world, dataset, LAYER, "block_z", num_steps=5, num_clips=16)


# -- ablate a head -----------------------------------------------------------------------------

PATCHES = LatentSpec("continuous", (1, 3), 4)
MOVES = ActionSpec("continuous", ("x",), (-1.0,), (1.0,))


def moving_patches(count: int, seed: int) -> Batch:
    """The first patch becomes what the second was, which takes attention; the third moves by the
    action, which takes none; the second is noise."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, 4, generator=random)
    acts = torch.rand(count, 2, 1, generator=random) * 2 - 1
    third = torch.randn(count, 1, 4, generator=random) + torch.cat(
        [torch.zeros(count, 1, 1), acts], 1
    ).cumsum(1)
    first = torch.cat([torch.randn(count, 1, 4, generator=random), noise[:, :-1]], 1)
    acts = torch.cat([acts, acts[:, :1]], 1)
    return Batch(None, torch.stack([first, noise, third], 2), acts)


@torch.no_grad()
def errors(model: Predictor, batch: Batch) -> tuple[float, float]:
    """Squared errors of the patch that is copied and of the one that is moved."""
    latents, acts = batch.require("latents", "actions")
    actions = acts[:, :2, None]
    predicted, _ = model.predict(latents[:, :2], actions, torch.ones(len(latents), 2).long())
    error = (predicted - latents[:, 1:]).square().mean((0, 1, 3))
    return float(error[0]), float(error[2])


def test_of_the_heads_one_copies_between_patches_and_its_ablation_costs_that_figure_alone():
    torch.manual_seed(0)
    small = TransformerConfig(dim=32, num_layers=1, num_heads=2, mlp_dim=64, context_frames=2)
    config = PredictorConfig(
        transformer=small, frameskip=1, clip_length=3, rewards=False, rollout_weight=0.0
    )
    model = Predictor(config, PATCHES, MOVES)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for step in range(400):
        loss = model.loss(moving_patches(64, step))["prediction"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = moving_patches(256, 10**6)
    copied, moved = errors(model.eval(), held_out)
    costs = []
    for head in range(2):
        ablated = AblateHeads(num_heads=2, heads=(head,))
        with LayerManipulator(model, {"ablated": ("transformer.layers.0.qkv", ablated)}):
            without = errors(model, held_out)
        costs.append((without[0] - copied, without[1] - moved))
    assert errors(model, held_out) == (copied, moved)
    assert copied < 0.3 and moved < 0.3
    worst = max(costs)
    assert worst[0] > 0.3 and worst[0] > 4 * abs(worst[1])
