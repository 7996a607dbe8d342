"""A controller that is shown goals, in a world that is known by heart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_planner import POINTER, Follower
from torch import Tensor

from models.build import build_controller, describe
from models.goal_policy import GoalPolicy, GoalPolicyConfig
from models.policy import PolicyConfig
from models.tokenizer import Latents

POINT = Latents("continuous", (1, 1), 2)
SMALL = GoalPolicyConfig(PolicyConfig(hidden=64), legs=2, leg=2, proposals=3)


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
        torch.stack([losses[name] for name in ("best", "expected", "hindsight")]).sum().backward()
        optimizer.step()
        history.append({k: float(v.detach()) for k, v in losses.items()})
    return model.eval(), history


def test_it_learns_to_reach_goals_that_it_was_never_shown(trained) -> None:
    model, history = trained
    assert history[0]["chosen"] > 0.5 and history[-1]["chosen"] < 0.1
    torch.manual_seed(1)
    latents, actions = clip(200)
    world = Follower()
    state, goal = world.state(latents[:, 1, 0]), latents[:, -1]
    plan = model.to_goal(state, goal, POINTER.denormalize(actions[:, 0]))
    assert plan.actions.shape == (200, 4, 2) and plan.ends.shape == (200, 3, 2)
    end = world.rollout(state, plan.actions).latents
    left = (end - goal).square().mean()
    assert left < 0.1 * (state.latents - goal).square().mean()


def test_it_takes_nearly_the_best_of_its_ways(trained) -> None:
    history = trained[1]
    assert history[-1]["chosen"] < 1.5 * history[-1]["nearest"] + 0.02


def test_a_way_begins_at_the_last_action_and_stays_inside(trained) -> None:
    model, _ = trained
    last = torch.tensor([[0.0, 100.0], [50.0, 20.0]])
    state = Follower().state(torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))
    goal = torch.tensor([[[1.0, -1.0]], [[5.0, 5.0]]])
    plan = model.to_goal(state, goal, last)
    assert torch.allclose(POINTER.denormalize(plan.ends[:, 0]), last)
    assert plan.actions.min() >= 0 and plan.actions.max() <= 100
    unknown = model.to_goal(state, goal, None)
    assert torch.equal(unknown.ends[:, 0], torch.zeros(2, 2))


def test_the_start_is_known_with_and_without_its_history() -> None:
    torch.manual_seed(0)
    model, seen = GoalPolicy(SMALL, POINT, POINTER), set()

    class Looks(Imagined):
        def start(self, latents: Tensor, actions: Tensor):
            seen.add(latents.shape[1])
            return super().start(latents, actions)

    for _ in range(12):
        model.loss(Looks(), *clip(4, frames=7))  # type: ignore[arg-type]
    assert seen == {1, 3}


def test_codes_are_refused_and_a_checkpoint_is_enough() -> None:
    with pytest.raises(ValueError, match="codes do not carry"):
        GoalPolicy(SMALL, Latents("discrete", (2, 2), 4, 16), POINTER)
    model = GoalPolicy(replace(SMALL, proposals=2), Latents("continuous", (4, 4), 3), POINTER)
    again = build_controller(describe(model.config), model.latents, POINTER)
    again.load_state_dict(model.state_dict())
    x, last = torch.randn(2, 16, 3), torch.zeros(2, 2)
    assert torch.equal(again(x, x, last)[0], model(x, x, last)[0])
