"""A controller that is shown goals, in a world that is known by heart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_planner import POINTER, Follower
from torch import Tensor

from models.controllers.goal_policy import GoalPolicy, GoalPolicyConfig
from models.controllers.policy import PolicyConfig
from models.registry import build_controller, describe
from models.tokenizers.tokenizer import LatentSpec

POINT = LatentSpec("continuous", (1, 1), 2)
SMALL = GoalPolicyConfig(PolicyConfig(hidden_dim=64), action_block=2, horizon=3, max_goal_offset=4)


class Imagined(Follower):
    """Also as the dynamics of itself: what it is given is already normalised."""

    @property
    def dynamics(self) -> Imagined:
        return self

    def start(self, latents: Tensor, actions: Tensor):
        assert latents.shape[1] == actions.shape[1] + 1
        return self.state(latents[:, -1, 0])

    def rollout(self, state, actions: Tensor):
        return super().rollout(state, POINTER.denormalize(actions))


def clip(count: int, frames: int = 6) -> tuple[Tensor, Tensor]:
    """A point that follows a wandering action: latents (B, T, 1, 2), actions (B, T, 2)."""
    actions = (0.3 * torch.randn(count, frames, 2)).cumsum(1).clamp(-1, 1)
    places = [torch.rand(count, 2) * 2 - 1]
    for action in actions.unbind(1)[:-1]:
        places.append(places[-1] + 0.5 * (action - places[-1]))
    return torch.stack(places, 1)[:, :, None], actions


@pytest.fixture(scope="module")
def trained() -> tuple[GoalPolicy, list[dict[str, float]]]:
    torch.manual_seed(0)
    model, world = GoalPolicy(SMALL, POINT, POINTER).train(), Imagined()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    history = []
    for _ in range(300):
        losses = model.loss(world, *clip(64))  # type: ignore[arg-type]
        optimizer.zero_grad()
        torch.stack([v for v in losses.values() if v.requires_grad]).sum().backward()
        optimizer.step()
        history.append({k: float(v.detach()) for k, v in losses.items()})
    return model.eval(), history


def test_it_learns_to_reach_goals_that_it_was_never_shown(trained) -> None:
    model, history = trained
    assert history[0]["left"] > 0.5 and history[-1]["left"] < 0.3
    torch.manual_seed(1)
    latents, actions = clip(200)
    world = Follower()
    state, goal = world.state(latents[:, 1, 0]), latents[:, -1]
    stayed = (state.latents - goal).square().mean()
    last = POINTER.denormalize(actions[:, 0])
    for _ in range(3):
        plan = model.plan(state, goal, last)
        assert plan.actions.shape == (200, 2, 2) and plan.ends.shape == (200, 2, 2)
        state, last = world.rollout(state, plan.actions), plan.actions[:, -1]
    assert (state.latents - goal).square().mean() < 0.1 * stayed


def test_it_sees_where_it_has_come_to_and_answers_to_that(trained) -> None:
    model, _ = trained
    goal, last = torch.zeros(2, 1, 2), torch.tensor([[50.0, 50.0]]).expand(2, 2)
    places = torch.tensor([[[0.4, 0.0]], [[-0.4, 0.0]]])
    ends = model.plan(Follower().state(places[:, 0]), goal, last).ends[:, 1, 0]
    assert ends[0] < ends[1] - 0.03


def test_only_what_was_recorded_teaches_where_imagination_is_worth_nothing() -> None:
    """A world in which nothing moves leaves the recording as the only answer."""
    torch.manual_seed(0)
    model = GoalPolicy(
        replace(SMALL, early_weight=0.0, control_penalty=0.0, bc_weight=1.0), POINT, POINTER
    ).train()

    class Still(Imagined):
        def rollout(self, state, actions: Tensor):
            return state

    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    recorded = []
    for _ in range(200):
        losses = model.loss(Still(), *clip(64))  # type: ignore[arg-type]
        optimizer.zero_grad()
        losses["recorded"].backward()
        optimizer.step()
        recorded.append(float(losses["recorded"].detach()))
        assert not losses["distance"].requires_grad
    assert sum(recorded[-20:]) < 0.5 * sum(recorded[:20])


def test_a_way_begins_at_the_last_action_and_stays_inside(trained) -> None:
    model, _ = trained
    last = torch.tensor([[0.0, 100.0], [50.0, 20.0]])
    state = Follower().state(torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))
    goal = torch.tensor([[[1.0, -1.0]], [[5.0, 5.0]]])
    plan = model.plan(state, goal, last)
    assert torch.allclose(POINTER.denormalize(plan.ends[:, 0]), last)
    assert plan.actions.min() >= 0 and plan.actions.max() <= 100
    unknown = model.plan(state, goal, None)
    assert torch.equal(unknown.ends[:, 0], torch.zeros(2, 2))


def test_starts_are_spread_and_goals_lie_within_the_clip() -> None:
    """Latents that count frames: where a way starts and ends can be read from them."""
    torch.manual_seed(0)
    config = replace(SMALL, action_block=2, max_goal_offset=6)
    model, starts, goals = GoalPolicy(config, POINT, POINTER), [], []

    class Looks(Imagined):
        def start(self, latents: Tensor, actions: Tensor):
            assert torch.equal(latents.diff(dim=1), torch.ones_like(latents[:, 1:]))
            assert torch.equal(latents[:, :-1, 0, 0], actions[..., 0])
            starts.append(latents[:, -1, 0, 0])
            return super().start(latents, actions)

    model.register_forward_pre_hook(lambda _, given: goals.append(given[1][:, 0, 0]))
    count = torch.arange(9.0)[None, :, None].expand(256, 9, 2)
    model.loss(Looks(), count[:, :, None], count)  # type: ignore[arg-type]
    start, ahead = starts[0], goals[0] - starts[0]
    assert start.min() == 2 and start.max() == 6
    assert ahead.min() == 2 and ahead.max() == 6
    assert (start + ahead).max() == 8


def test_codes_are_refused_and_a_checkpoint_is_enough() -> None:
    with pytest.raises(ValueError, match="codes do not carry"):
        GoalPolicy(SMALL, LatentSpec("discrete", (2, 2), 4, 16), POINTER)
    model = GoalPolicy(SMALL, LatentSpec("continuous", (4, 4), 3), POINTER)
    again = build_controller(describe(model.config), model.latents, POINTER)
    again.load_state_dict(model.state_dict())
    x, last = torch.randn(2, 16, 3), torch.zeros(2, 2)
    assert torch.equal(again(x, x, last), model(x, x, last))
    with pytest.raises(ValueError, match="nearer than a leg"):
        GoalPolicy(replace(SMALL, max_goal_offset=1), POINT, POINTER)


def test_places_are_seen_from_the_hand() -> None:
    """Moved together, places and hand are as far apart as before, and the sines say so."""
    torch.manual_seed(0)
    places = LatentSpec("continuous", (1, 1), 4, is_xy=True)
    model = GoalPolicy(SMALL, places, POINTER)
    plain = GoalPolicy(SMALL, LatentSpec("continuous", (1, 1), 4), POINTER)
    first, width = (next(iter(each.net.parameters())).shape[1] for each in (model, plain))
    assert first == width + 2 * 4 * 2 * len(model.WAVELENGTHS)
    with torch.no_grad():
        next(iter(model.net.parameters()))[:, :width] = 0  # only the sines are looked at
    seen, goal = 0.5 * torch.rand(3, 1, 4), 0.5 * torch.rand(3, 1, 4)
    last = torch.zeros(3, 2)
    shift = torch.tensor([0.25, -0.125])
    step = model(seen, goal, last) - last
    moved = model(seen + shift.repeat(2), goal + shift.repeat(2), last + shift) - last - shift
    assert step.abs().min() > 0 and torch.allclose(step, moved, atol=1e-5)
    assert not torch.allclose(step, model(seen + shift.repeat(2), goal, last) - last, atol=1e-4)


def test_latents_of_before_say_nothing_of_places_and_are_the_same() -> None:
    places = LatentSpec("continuous", (1, 1), 4, is_xy=True)
    described = places.as_dict()
    assert LatentSpec.from_dict(described).is_xy
    del described["places"]
    assert LatentSpec.from_dict(described) == places and not LatentSpec.from_dict(described).is_xy
