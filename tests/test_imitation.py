"""Imitation metrics of policies whose accuracy is known."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from key_worlds import KeyClips, StillWorld
from torch import Tensor
from torch.distributions import Categorical

from data.actions import ActionSpec
from data.shards.episode_dataset import EpisodeDataset
from data.toy import KEYS, MOVES, write_toy_shards
from evaluation.measures.imitation import MarginalBaseline, imitation, marginal_baselines
from models.controllers.discrete_goal_policy import DiscreteGoalPolicy
from models.layers.distributions import MultiCategorical

NOOP = int(KEYS.ravel(torch.tensor([2, 0])))


class Knowing:
    """Reads the dataset's code from the image."""

    def distribution(self, latents: Tensor) -> Categorical:
        return Categorical(logits=100.0 * torch.nn.functional.one_hot(self.code(latents), 15))

    def code(self, latents: Tensor) -> Tensor:
        return latents[:, 2]


class HalfKnowing(Knowing):
    """Predicts `across`, and never moves up or down."""

    def code(self, latents: Tensor) -> Tensor:
        return latents[:, 2] % 5


class Guessing:
    def distribution(self, latents: Tensor) -> Categorical:
        return Categorical(logits=torch.zeros(len(latents), 15))


def measure(policy, **settings):
    return imitation(StillWorld(), {"it": policy}, KeyClips(clip_length=1), **settings)["it"]


def test_a_policy_that_knows_the_action_is_certain_and_accurate():
    metrics = measure(Knowing())
    assert metrics["log_likelihood"] == pytest.approx(0, abs=1e-6)
    assert metrics["accuracy"] == 1
    assert metrics["by_factor"] == {"across": 1, "move": 1}
    assert metrics["f1"] == {"up": 1, "down": 1}
    assert metrics["n"] == 6 * 24 and metrics["sources"] == 6
    json.dumps(metrics, allow_nan=False)


def test_a_uniform_policy_has_the_likelihood_of_chance():
    metrics = measure(Guessing())
    for key in ("log_likelihood", "log_likelihood_low", "log_likelihood_high"):
        assert metrics[key] == pytest.approx(-math.log(15))
    assert metrics["accuracy"] < 0.3


def test_accuracy_is_separate_by_factor_and_by_key():
    metrics = measure(HalfKnowing())
    share = float((KeyClips().codes < 5).double().mean())
    assert metrics["by_factor"]["across"] == 1
    assert metrics["by_factor"]["move"] == metrics["accuracy"] == pytest.approx(share)
    assert metrics["f1"] == {"up": 0, "down": 0}


def test_an_actor_critic_is_measured_by_its_policy():
    assert measure(SimpleNamespace(policy=Knowing())) == measure(Knowing())


def test_intervals_contain_the_likelihood_and_batches_do_not_matter():
    baseline = MarginalBaseline(KEYS, torch.tensor([0, 0, 1, NOOP]))
    metrics = measure(baseline)
    assert metrics["log_likelihood_low"] < metrics["log_likelihood"]
    assert metrics["log_likelihood"] < metrics["log_likelihood_high"]
    assert measure(baseline, batch_size=5) == metrics


def test_a_marginal_baseline_counts_each_label_once_more_than_it_occurs():
    baseline = MarginalBaseline(KEYS, KEYS.ravel(torch.tensor([[0, 0], [0, 0], [4, 2], [0, 1]])))
    dist = baseline.distribution(torch.zeros(3, 1))
    codes = KEYS.ravel(torch.tensor([[0, 0], [4, 1], [2, 2]]))
    shares = [4 / 9 * 3 / 7, 2 / 9 * 2 / 7, 1 / 9 * 2 / 7]
    assert dist.log_prob(codes).exp().tolist() == pytest.approx(shares)
    assert dist.mode.tolist() == [0, 0, 0]
    everything = baseline.distribution(torch.zeros(15, 1)).log_prob(torch.arange(15))
    assert float(everything.exp().sum()) == pytest.approx(1)


@pytest.mark.parametrize(("kind", "spec"), [("factored", KEYS), ("discrete", MOVES)])
def test_baselines_know_only_the_training_episodes(tmp_path: Path, kind: str, spec: ActionSpec):
    dataset = EpisodeDataset(write_toy_shards(tmp_path, size=16, **{kind: True}))
    train = [dataset.read(e, "actions") for e in dataset.episodes("train")]
    codes = torch.from_numpy(np.concatenate(train))
    all_codes = torch.arange(spec.size)
    log_probs = {
        name: baseline.distribution(torch.zeros(spec.size, 1)).log_prob(all_codes)
        for name, baseline in marginal_baselines(dataset).items()
    }
    expected = (
        MarginalBaseline(spec, codes).distribution(torch.zeros(spec.size, 1)).log_prob(all_codes)
    )
    assert torch.allclose(log_probs["most_frequent"], expected)
    noop = NOOP if spec is KEYS else 0
    assert int(log_probs["noop"].argmax()) == noop
    sizes = spec.factor_sizes or (spec.size,)
    expected_prob = math.prod((len(codes) + 1) / (len(codes) + size) for size in sizes)
    assert float(log_probs["noop"][noop].exp()) == pytest.approx(expected_prob, rel=1e-5)


def test_a_noop_policy_is_accurate_where_the_dataset_has_noops():
    clips = KeyClips(clip_length=1)
    metrics = measure(MarginalBaseline(KEYS, torch.full((50,), NOOP)))
    share = float((clips.codes == NOOP).double().mean())
    assert metrics["accuracy"] == pytest.approx(share) and share > 0
    assert metrics["f1"] == {"up": 0, "down": 0}


class Aiming(DiscreteGoalPolicy):
    """Presses up or down towards the goal."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def distribution(self, latents: Tensor, goal: Tensor) -> MultiCategorical:
        offset = (goal[:, 1] - latents[:, 1]).float()
        move = 20 * torch.stack([1 - offset.abs(), -offset, offset], -1)
        return MultiCategorical(torch.cat([torch.zeros(len(latents), 5), move], -1), KEYS)


def test_a_goal_policy_is_given_the_last_frame_of_a_clip():
    clips = KeyClips(clip_length=2)
    metrics = imitation(StillWorld(), {"goal_policy": Aiming()}, clips)["goal_policy"]
    assert metrics["by_factor"]["move"] == 1 and metrics["f1"] == {"up": 1, "down": 1}
    alone = imitation(StillWorld(), {"goal_policy": Aiming()}, KeyClips(clip_length=1))[
        "goal_policy"
    ]
    assert alone["f1"] == {"up": 0, "down": 0}
