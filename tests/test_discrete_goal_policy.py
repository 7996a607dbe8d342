"""A goal policy over discrete actions, in a world with known dynamics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from data.toy import KEYS, MOVES
from models.controllers.discrete_goal_policy import DiscreteGoalPolicy, DiscreteGoalPolicyConfig
from models.controllers.policy import PolicyConfig
from models.dynamics.dynamics import State
from models.registry import DataSpec, build_controller, describe
from models.tokenizers.tokenizer import LatentSpec

PLACE = LatentSpec("continuous", (1, 1), 2)
SMALL = DiscreteGoalPolicyConfig(
    PolicyConfig(hidden_dim=64, dropout=0.0), goal_offset=4, num_samples=8, bc_weight=0.0
)
ALONG = torch.tensor([0.0, -1.0, 1.0])


def moved(codes: Tensor) -> Tensor:
    """(B,) -> (B, 2): across in half steps, up or down."""
    across, move = KEYS.unravel(codes).unbind(-1)
    return 0.25 * torch.stack([(across - 2) / 2, ALONG[move]], -1)


class NoMemory:
    def select(self, index: Tensor) -> NoMemory:
        return self


class Places:
    """A world of a point that is moved by actions."""

    actions, context = KEYS, 1

    def vectors(self, latents: Tensor) -> Tensor:
        return latents

    def start_from(self, latents: Tensor, actions: Tensor) -> State:
        rows = torch.ones(len(latents))
        return State(latents[:, -1], rows, rows, NoMemory())

    def step_from(self, state: State, action: Tensor) -> State:
        there = state.latents + moved(action)[:, None]
        return State(there, state.reward, state.continues, state.memory)


def clip(count: int, steps: int = 4) -> Batch:
    """A point moved by random codes: latents (B, T, 1, 2), codes (B, T)."""
    codes = torch.randint(0, KEYS.size, (count, steps + 1))
    places = [torch.rand(count, 2) * 2 - 1]
    for code in codes.unbind(1)[:-1]:
        places.append(places[-1] + moved(code))
    return Batch(latents=torch.stack(places, 1)[:, :, None], actions=codes)


def distance_left(model: DiscreteGoalPolicy) -> float:
    """Distance to held-out goals after the likeliest codes, relative to the one before."""
    torch.manual_seed(1)
    world = Places()
    latents, codes = clip(256).require("latents", "actions")
    state, goal = world.start_from(latents[:, :1], codes[:, :0]), latents[:, -1]
    before = (state.latents - goal).norm(dim=-1).mean()
    for _ in range(model.max_goal_offset):
        plan = model.plan(state, goal, None)
        assert plan.actions.shape == (256, 1)
        state = world.step_from(state, plan.actions[:, 0])
    return float((state.latents - goal).norm(dim=-1).mean() / before)


def test_it_learns_to_reach_goals_from_model_rollouts_alone():
    torch.manual_seed(0)
    model = DiscreteGoalPolicy(SMALL, PLACE, KEYS)
    untrained = distance_left(model)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    world = Places()
    for _ in range(150):
        losses = model.loss(clip(64), world)  # type: ignore[arg-type]
        sum((v for v in losses.values() if v.requires_grad), torch.zeros(())).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert untrained > 0.8 and distance_left(model.eval()) < 0.35
    assert float(losses["final_distance"]) < 0.6


def test_the_dataset_is_cloned_with_its_weight():
    torch.manual_seed(0)
    config = DiscreteGoalPolicyConfig(
        SMALL.encoder, goal_offset=4, num_samples=2, her_weight=0.0, bc_weight=1.0
    )
    model, batch = DiscreteGoalPolicy(config, PLACE, KEYS), clip(32)
    losses = model.loss(batch, Places())  # type: ignore[arg-type]
    latents, codes = batch.require("latents", "actions")
    goal = latents[:, -1].repeat_interleave(4, 0)
    expected = -model.distribution(latents[:, :4].flatten(0, 1), goal).log_prob(
        codes[:, :4].ravel()
    )
    assert float(losses["bc"]) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert float(losses["her"]) == 0


def test_a_checkpoint_rebuilds_it_and_other_actions_are_refused():
    model = DiscreteGoalPolicy(SMALL, PLACE, KEYS)
    again = build_controller(describe(SMALL), DataSpec((32, 32), KEYS, PLACE))
    assert isinstance(again, nn.Module) and again.config == model.config
    again.load_state_dict(model.state_dict())
    for spec in (MOVES, ActionSpec("continuous", ("x",), (0.0,), (1.0,))):
        with pytest.raises(ValueError, match="factored discrete actions"):
            DiscreteGoalPolicy(SMALL, PLACE, spec)
