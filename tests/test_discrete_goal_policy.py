"""A controller of keys that is shown goals, in a world that is known by heart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from data.actions import ActionSpec
from data.toy import KEYS, MOVES
from models.controllers.discrete_goal_policy import DiscreteGoalPolicy, DiscreteGoalPolicyConfig
from models.controllers.policy import PolicyConfig
from models.dynamics.dynamics import State
from models.registry import build_controller, describe
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


class Forgets:
    def select(self, index: Tensor) -> Forgets:
        return self


class Places:
    """A point that goes where it is told; also as the dynamics of itself."""

    actions, context = KEYS, 1

    @property
    def dynamics(self) -> Places:
        return self

    def vectors(self, latents: Tensor) -> Tensor:
        return latents

    def start(self, latents: Tensor, actions: Tensor) -> State:
        rows = torch.ones(len(latents))
        return State(latents[:, -1], rows, rows, Forgets())

    def step(self, state: State, action: Tensor) -> State:
        there = state.latents + moved(action)[:, None]
        return State(there, state.reward, state.continues, state.memory)


def clip(count: int, steps: int = 4) -> tuple[Tensor, Tensor]:
    """Points that were led by random codes: latents (B, T, 1, 2), codes (B, T)."""
    codes = torch.randint(0, KEYS.size, (count, steps + 1))
    places = [torch.rand(count, 2) * 2 - 1]
    for code in codes.unbind(1)[:-1]:
        places.append(places[-1] + moved(code))
    return torch.stack(places, 1)[:, :, None], codes


def nearer(model: DiscreteGoalPolicy) -> float:
    """Distance to held-out goals after following the likeliest codes, as a share of that before."""
    torch.manual_seed(1)
    world, (latents, codes) = Places(), clip(256)
    state, goal = world.start(latents[:, :1], codes[:, :0]), latents[:, -1]
    before = (state.latents - goal).norm(dim=-1).mean()
    for _ in range(model.max_goal_offset):
        plan = model.plan(state, goal, None)
        assert plan.actions.shape == (256, 1)
        state = world.step(state, plan.actions[:, 0])
    return float((state.latents - goal).norm(dim=-1).mean() / before)


def test_it_learns_in_imagination_alone_to_reach_goals():
    torch.manual_seed(0)
    model = DiscreteGoalPolicy(SMALL, PLACE, KEYS)
    untrained = nearer(model)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    world = Places()
    for _ in range(150):
        losses = model.loss(world, *clip(64))  # type: ignore[arg-type]
        sum((v for v in losses.values() if v.requires_grad), torch.zeros(())).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert untrained > 0.8 and nearer(model.eval()) < 0.35
    assert float(losses["left"]) < 0.6


def test_recorded_ways_are_learnt_where_their_weight_says_so():
    torch.manual_seed(0)
    config = DiscreteGoalPolicyConfig(
        SMALL.encoder, goal_offset=4, num_samples=2, her_weight=0.0, bc_weight=1.0
    )
    model, (latents, codes) = DiscreteGoalPolicy(config, PLACE, KEYS), clip(32)
    losses = model.loss(Places(), latents, codes)  # type: ignore[arg-type]
    goal = latents[:, -1].repeat_interleave(4, 0)
    expected = -model.distribution(latents[:, :4].flatten(0, 1), goal).log_prob(
        codes[:, :4].ravel()
    )
    assert float(losses["recorded"]) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert float(losses["hindsight"]) == 0


def test_a_checkpoint_describes_it_and_other_actions_are_refused():
    model = DiscreteGoalPolicy(SMALL, PLACE, KEYS)
    again = build_controller(describe(SMALL), PLACE, KEYS)
    assert isinstance(again, nn.Module) and again.config == model.config
    again.load_state_dict(model.state_dict())
    for spec in (MOVES, ActionSpec("continuous", ("x",), (0.0,), (1.0,))):
        with pytest.raises(ValueError, match="keys and turns"):
            DiscreteGoalPolicy(SMALL, PLACE, spec)
