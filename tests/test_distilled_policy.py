"""A student that learns to answer as the best of its imitator's chunks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_best_of_n import CONFIG, UP
from test_flow_policy import POINT, SMALL, demos, fit
from test_planner import POINTER, Follower
from torch import Tensor

from data.batch import Batch
from models.controllers.distilled_policy import DistilledPolicy, DistilledPolicyConfig
from models.controllers.flow_policy import FlowPolicy
from models.dynamics.dynamics import State
from models.planning.best_of_n import BestOfN
from models.planning.goal_set import NearestGoalDistance


class World(Follower):
    """A `Follower` that can be entered from latents."""

    def start_from(self, latents: Tensor, actions: Tensor) -> State:
        return self.state(latents[:, -1, 0])


@pytest.fixture(scope="module")
def expert() -> BestOfN:
    """The imitator goes up or down as often; the expert is to end up."""
    torch.manual_seed(0)
    imitator = FlowPolicy(replace(SMALL, receding_horizon=4), POINT, POINTER)
    fit(imitator, 300)
    world: Any = World()
    objective = NearestGoalDistance(world, UP)
    return BestOfN(CONFIG, world, imitator.requires_grad_(False), objective, block=2)


def student(expert: BestOfN, **changes: Any) -> DistilledPolicy:
    config = DistilledPolicyConfig(expert.policy.config, num_decisions=2, bc_weight=0.0)
    model = DistilledPolicy(replace(config, **changes), POINT, POINTER)
    model.policy.load_state_dict(expert.policy.state_dict())
    return model


def starts(count: int) -> Batch:
    shown = demos(count)
    latents, actions = shown.require("latents", "actions")
    extra = {"bc_latents": latents, "bc_actions": actions}
    return Batch(latents=latents, actions=actions[:, :1], extra=extra)


def share_that_goes_up(model: DistilledPolicy) -> float:
    torch.manual_seed(1)
    latents = starts(100).require("latents")[0][:, 0]
    chunks = model.policy.sample(latents, torch.randn(100, 4, 2))
    return float((chunks[:, -1, 1] > 0).float().mean())


@pytest.mark.slow
def test_the_student_learns_what_the_expert_decides(expert: BestOfN):
    model = student(expert)
    torch.manual_seed(0)
    before = model.validate(starts(64), expert)
    assert before["regret"] == pytest.approx(before["imitator_regret"]) and before["regret"] > 0
    assert share_that_goes_up(model) < 0.8
    optimizer = torch.optim.AdamW(model.train().parameters(), 1e-3)
    for _ in range(75):
        loss = model.loss(starts(32), expert)["flow_matching"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    torch.manual_seed(0)
    after = model.validate(starts(64), expert)
    assert after["regret"] < before["regret"]
    assert after["imitator_regret"] == pytest.approx(before["imitator_regret"])  # it stays
    assert share_that_goes_up(model) > 0.95


def test_it_learns_of_the_states_that_the_expert_leads_to(expert: BestOfN):
    latents, chunks = student(expert, num_decisions=3).decide(starts(5), expert)
    assert latents.shape == (15, 1, 2) and chunks.shape == (15, 4, 2)
    first, second, _ = latents[:, 0].split(5)
    world = Follower()
    actions = POINTER.denormalize(chunks[:5])
    assert torch.allclose(world.rollout(world.state(first), actions).latents[:, 0], second)


def test_demonstrations_count_as_much_as_they_are_said_to(expert: BestOfN):
    batch = starts(16)
    torch.manual_seed(0)
    half = student(expert, bc_weight=0.5).loss(batch, expert)
    torch.manual_seed(0)
    whole = student(expert, bc_weight=1.0).loss(batch, expert)
    assert torch.allclose(2 * half["bc"], whole["bc"])
    assert torch.allclose(half["flow_matching"], whole["flow_matching"])
