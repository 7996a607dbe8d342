"""Policies of latent actions in a simulator: what they mean arrives there through a map."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from square_run import square_run
from square_world import MOVE, MOVES, NAMES, STICK, VECTORS, draw, square_world, write_squares

import train_controller
from data.actions import ActionSpec
from evaluation.protocols.latent_policies import (
    LatentMpcPolicy,
    MappedPolicy,
    controller_policies,
)
from evaluation.protocols.policies import Observation
from evaluation.readers.label_budget import cached_action_map
from models.action_map import ActionMap, fit_action_map
from models.planning.code_planner import CodePlanner, CodePlannerConfig

PLACES = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (32.0, 32.0), pointer=True)
STARTS, GOALS = np.array([[9.0, 9.0], [20.0, 12.0]]), np.array([[17.0, 13.0], [14.0, 22.0]])


def observed(places: np.ndarray) -> Observation:
    frames = draw(torch.from_numpy(places).float()).numpy()
    return Observation(frames, places, np.zeros((2, 2)), np.ones(2, bool))


def steered(action_map: ActionMap, deaf: bool = False, steps: int = 8) -> np.ndarray:
    """Steer two squares by the map's true actions; return their distances from the goals."""
    world, places = square_world(deaf), STARTS.copy()
    config = CodePlannerConfig(beam_width=16, horizon=4, action_block=1)
    policy = LatentMpcPolicy(world, CodePlanner(config, world), 2, action_map=action_map)
    policy.reset(observed(places), observed(GOALS))
    for _ in range(steps):
        taken = policy.act(observed(places))
        moved = taken if action_map.true == STICK else VECTORS[taken]
        places = places + MOVE * moved
    return np.linalg.norm(places - GOALS, axis=1)


@pytest.mark.parametrize("spec", [STICK, MOVES])
def test_a_plan_of_codes_reaches_its_goal_in_the_true_world(tmp_path: Path, spec):
    dataset = write_squares(tmp_path / "shards", spec)
    action_map = cached_action_map(tmp_path, square_world(), dataset, 60, "fingerprint")
    assert action_map is not None
    assert steered(action_map).max() < 2.5
    assert np.linalg.norm(STARTS - GOALS, axis=1).min() > 8


def test_a_map_that_is_wrong_leads_elsewhere():
    mirrored = torch.tensor([0, 5, 6, 7, 8, 1, 2, 3, 4])  # each the opposite direction
    names = torch.from_numpy(NAMES)
    action_map = fit_action_map(square_world().actions, MOVES, names, mirrored)
    assert steered(action_map).min() > 8


def test_where_actions_are_places_the_agents_own_is_added():
    places = ActionMap(
        square_world().actions, PLACES, 9, torch.ones(9), torch.full((9, 2), 0.25), torch.eye(2)
    )
    policy = MappedPolicy(cast(Any, Always(3)), places)
    acted = policy.act(observed(STARTS))
    assert np.allclose(acted, STARTS + 4)  # a quarter of half the range, of 32


class Always:
    needs_pixels = False

    def __init__(self, code: int) -> None:
        self.code = code

    def act(self, obs: Observation) -> np.ndarray:
        return np.full(len(obs.states), self.code)


def test_without_a_map_no_controller_acts_in_the_simulator():
    assert controller_policies(square_world(), {"bc": cast(Any, Always(1))}, None) == {}


def test_training_a_controller_there_is_refused_in_one_line(tmp_path: Path, monkeypatch):
    run = square_run(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match="infers its own actions, and no controller"):
        train_controller.main(train_controller.Config(run))
    assert not (run / "controller").exists()
