"""Imitation figures of policies whose worth is known."""

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
from data.shards import EpisodeDataset
from data.toy import KEYS, MOVES, write_toy_shards
from evaluation.measures.imitation import Habit, imitation, marginal_baselines
from models.controllers.discrete_goal_policy import DiscreteGoalPolicy
from models.layers.multi_categorical import MultiCategorical

NOTHING = int(KEYS.ravel(torch.tensor([2, 0])))


class Knowing:
    """Reads the recorded code from the picture, and does it."""

    def distribution(self, latents: Tensor) -> Categorical:
        return Categorical(logits=100.0 * torch.nn.functional.one_hot(self.code(latents), 15))

    def code(self, latents: Tensor) -> Tensor:
        return latents[:, 2]


class HalfKnowing(Knowing):
    """Goes across as recorded, and never up or down."""

    def code(self, latents: Tensor) -> Tensor:
        return latents[:, 2] % 5


class Guessing:
    def distribution(self, latents: Tensor) -> Categorical:
        return Categorical(logits=torch.zeros(len(latents), 15))


def measured(policy, **settings):
    return imitation(StillWorld(), {"it": policy}, KeyClips(clip_length=1), **settings)["it"]


def test_who_always_does_what_was_recorded_is_certain_and_agrees():
    figures = measured(Knowing())
    assert figures["log_likelihood"] == pytest.approx(0, abs=1e-6)
    assert figures["agreement"] == 1
    assert figures["by_factor"] == {"across": 1, "move": 1}
    assert figures["f1"] == {"up": 1, "down": 1}
    assert figures["n"] == 6 * 24 and figures["sources"] == 6
    json.dumps(figures, allow_nan=False)


def test_who_guesses_has_the_likelihood_of_a_guess():
    figures = measured(Guessing())
    for key in ("log_likelihood", "log_likelihood_low", "log_likelihood_high"):
        assert figures[key] == pytest.approx(-math.log(15))
    assert figures["agreement"] < 0.3


def test_agreement_is_told_apart_by_factor_and_by_key():
    figures = measured(HalfKnowing())
    share = float((KeyClips().codes < 5).double().mean())
    assert figures["by_factor"]["across"] == 1
    assert figures["by_factor"]["move"] == figures["agreement"] == pytest.approx(share)
    assert figures["f1"] == {"up": 0, "down": 0}


def test_an_actor_critic_is_asked_through_its_policy():
    assert measured(SimpleNamespace(policy=Knowing())) == measured(Knowing())


def test_intervals_hold_the_likelihood_and_batches_do_not_matter():
    habit = Habit(KEYS, torch.tensor([0, 0, 1, NOTHING]))
    figures = measured(habit)
    assert figures["log_likelihood_low"] < figures["log_likelihood"]
    assert figures["log_likelihood"] < figures["log_likelihood_high"]
    assert measured(habit, batch_size=5) == figures


def test_a_habit_counts_each_factor_once_more_than_it_was_chosen():
    habit = Habit(KEYS, KEYS.ravel(torch.tensor([[0, 0], [0, 0], [4, 2], [0, 1]])))
    seen = habit.distribution(torch.zeros(3, 1))
    codes = KEYS.ravel(torch.tensor([[0, 0], [4, 1], [2, 2]]))
    shares = [4 / 9 * 3 / 7, 2 / 9 * 2 / 7, 1 / 9 * 2 / 7]
    assert seen.log_prob(codes).exp().tolist() == pytest.approx(shares)
    assert seen.mode.tolist() == [0, 0, 0]
    everything = habit.distribution(torch.zeros(15, 1)).log_prob(torch.arange(15))
    assert float(everything.exp().sum()) == pytest.approx(1)


@pytest.mark.parametrize(("kind", "spec"), [("factored", KEYS), ("discrete", MOVES)])
def test_baselines_know_the_training_episodes_alone(tmp_path: Path, kind: str, spec: ActionSpec):
    recordings = EpisodeDataset(write_toy_shards(tmp_path, size=16, **{kind: True}))
    train = [recordings.read(e, "actions") for e in recordings.episodes("train")]
    codes = torch.from_numpy(np.concatenate(train))
    all_codes = torch.arange(spec.size)
    given = {
        name: habit.distribution(torch.zeros(spec.size, 1)).log_prob(all_codes)
        for name, habit in marginal_baselines(recordings).items()
    }
    expected = Habit(spec, codes).distribution(torch.zeros(spec.size, 1)).log_prob(all_codes)
    assert torch.allclose(given["most_frequent"], expected)
    still = NOTHING if spec is KEYS else 0
    assert int(given["no_op"].argmax()) == still
    sizes = spec.factor_sizes or (spec.size,)
    likely = math.prod((len(codes) + 1) / (len(codes) + size) for size in sizes)
    assert float(given["no_op"][still].exp()) == pytest.approx(likely, rel=1e-5)


def test_doing_nothing_agrees_where_nothing_was_done():
    clips = KeyClips(clip_length=1)
    figures = measured(Habit(KEYS, torch.full((50,), NOTHING)))
    share = float((clips.codes == NOTHING).double().mean())
    assert figures["agreement"] == pytest.approx(share) and share > 0
    assert figures["f1"] == {"up": 0, "down": 0}


class Aiming(DiscreteGoalPolicy):
    """Presses up or down as the goal lies."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def distribution(self, latents: Tensor, goal: Tensor) -> MultiCategorical:
        way = (goal[:, 1] - latents[:, 1]).float()
        move = 20 * torch.stack([1 - way.abs(), -way, way], -1)
        return MultiCategorical(torch.cat([torch.zeros(len(latents), 5), move], -1), KEYS)


def test_who_is_shown_goals_sees_the_last_frame_of_a_window():
    clips = KeyClips(clip_length=2)
    figures = imitation(StillWorld(), {"goals": Aiming()}, clips)["goals"]
    assert figures["by_factor"]["move"] == 1 and figures["f1"] == {"up": 1, "down": 1}
    alone = imitation(StillWorld(), {"goals": Aiming()}, KeyClips(clip_length=1))["goals"]
    assert alone["f1"] == {"up": 0, "down": 0}
