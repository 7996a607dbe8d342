"""A goal policy in a world with known dynamics."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_planner import POINTER, Follower
from torch import Tensor

from data.batch import Batch
from models.controllers.goal_policy import GoalPolicy, GoalPolicyConfig
from models.controllers.policy import PolicyConfig
from models.registry import DataSpec, build_controller, describe
from models.tokenizers.tokenizer import LatentSpec

POINT = LatentSpec("continuous", (1, 1), 2)
SMALL = GoalPolicyConfig(PolicyConfig(hidden_dim=64), action_block=2, horizon=3, max_goal_offset=4)


class Rollouts(Follower):
    """Also with normalized actions."""

    def start_from(self, latents: Tensor, actions: Tensor):
        assert latents.shape[1] == actions.shape[1] + 1
        return self.state(latents[:, -1, 0])

    def rollout_from(self, state, actions: Tensor):
        return self.imagine(state, actions)


def clip(count: int, frames: int = 6) -> Batch:
    """A point that follows a wandering action: latents (B, T, 1, 2), actions (B, T, 2)."""
    actions = (0.3 * torch.randn(count, frames, 2)).cumsum(1).clamp(-1, 1)
    places = [torch.rand(count, 2) * 2 - 1]
    for action in actions.unbind(1)[:-1]:
        places.append(places[-1] + 0.5 * (action - places[-1]))
    return Batch(latents=torch.stack(places, 1)[:, :, None], actions=actions)


@pytest.fixture(scope="module")
def trained() -> tuple[GoalPolicy, list[dict[str, float]]]:
    torch.manual_seed(0)
    model, world = GoalPolicy(SMALL, POINT, POINTER).train(), Rollouts()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    history = []
    for _ in range(300):
        losses = model.loss(clip(64), world)  # type: ignore[arg-type]
        optimizer.zero_grad()
        torch.stack([v for v in losses.values() if v.requires_grad]).sum().backward()
        optimizer.step()
        history.append({k: float(v.detach()) for k, v in losses.items()})
    return model.eval(), history


@pytest.mark.slow
def test_it_learns_to_reach_held_out_goals(trained) -> None:
    model, history = trained
    assert history[0]["final_distance"] > 0.5 and history[-1]["final_distance"] < 0.3
    torch.manual_seed(1)
    latents, actions = clip(200).require("latents", "actions")
    world = Follower()
    state, goal = world.state(latents[:, 1, 0]), latents[:, -1]
    no_change = (state.latents - goal).square().mean()
    last = POINTER.denormalize(actions[:, 0])
    for _ in range(3):
        plan = model.plan(state, goal, last)
        assert plan.actions.shape == (200, 2, 2) and plan.knots.shape == (200, 2, 2)
        state, last = world.rollout(state, plan.actions), plan.actions[:, -1]
    assert (state.latents - goal).square().mean() < 0.1 * no_change


def test_the_plan_depends_on_the_state(trained) -> None:
    model, _ = trained
    goal, last = torch.zeros(2, 1, 2), torch.tensor([[50.0, 50.0]]).expand(2, 2)
    places = torch.tensor([[[0.4, 0.0]], [[-0.4, 0.0]]])
    knots = model.plan(Follower().state(places[:, 0]), goal, last).knots[:, 1, 0]
    assert knots[0] < knots[1] - 0.03


def test_behavior_cloning_learns_where_rollouts_give_no_gradient() -> None:
    """In a world without motion only the dataset is left to learn from."""
    torch.manual_seed(0)
    model = GoalPolicy(
        replace(SMALL, early_weight=0.0, control_penalty=0.0, bc_weight=1.0), POINT, POINTER
    ).train()

    class Still(Rollouts):
        def rollout_from(self, state, actions: Tensor):
            return state

    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    bc_losses = []
    for _ in range(200):
        losses = model.loss(clip(64), Still())  # type: ignore[arg-type]
        optimizer.zero_grad()
        losses["bc"].backward()
        optimizer.step()
        bc_losses.append(float(losses["bc"].detach()))
        assert not losses["goal_distance"].requires_grad
    assert sum(bc_losses[-20:]) < 0.5 * sum(bc_losses[:20])


def test_a_plan_starts_at_the_last_action_and_stays_in_range(trained) -> None:
    model, _ = trained
    last = torch.tensor([[0.0, 100.0], [50.0, 20.0]])
    state = Follower().state(torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))
    goal = torch.tensor([[[1.0, -1.0]], [[5.0, 5.0]]])
    plan = model.plan(state, goal, last)
    assert torch.allclose(POINTER.denormalize(plan.knots[:, 0]), last)
    assert plan.actions.min() >= 0 and plan.actions.max() <= 100
    unknown = model.plan(state, goal, None)
    assert torch.equal(unknown.knots[:, 0], torch.zeros(2, 2))


def test_starts_are_random_and_goals_lie_within_the_clip() -> None:
    """Latents count frames, so that starts and goals can be read from them."""
    torch.manual_seed(0)
    config = replace(SMALL, action_block=2, max_goal_offset=6)
    model, starts, goals = GoalPolicy(config, POINT, POINTER), [], []

    class RecordsStarts(Rollouts):
        def start_from(self, latents: Tensor, actions: Tensor):
            assert torch.equal(latents.diff(dim=1), torch.ones_like(latents[:, 1:]))
            assert torch.equal(latents[:, :-1, 0, 0], actions[..., 0])
            starts.append(latents[:, -1, 0, 0])
            return super().start_from(latents, actions)

    model.register_forward_pre_hook(lambda _, given: goals.append(given[1][:, 0, 0]))
    count = torch.arange(9.0)[None, :, None].expand(256, 9, 2)
    model.loss(Batch(latents=count[:, :, None], actions=count), RecordsStarts())  # type: ignore[arg-type]
    start, goal_offset = starts[0], goals[0] - starts[0]
    assert start.min() == 2 and start.max() == 6
    assert goal_offset.min() == 2 and goal_offset.max() == 6
    assert (start + goal_offset).max() == 8


def test_codes_are_refused_and_a_checkpoint_rebuilds_it() -> None:
    with pytest.raises(ValueError, match="codes pass none"):
        GoalPolicy(SMALL, LatentSpec("discrete", (2, 2), 4, 16), POINTER)
    model = GoalPolicy(SMALL, LatentSpec("continuous", (4, 4), 3), POINTER)
    again = build_controller(describe(model.config), DataSpec((32, 32), POINTER, model.latents))
    again.load_state_dict(model.state_dict())
    x, last = torch.randn(2, 16, 3), torch.zeros(2, 2)
    assert torch.equal(again(x, x, last), model(x, x, last))
    with pytest.raises(ValueError, match="--max-goal-offset 1 is below --action-block 2"):
        GoalPolicy(replace(SMALL, max_goal_offset=1), POINT, POINTER)


def test_keypoints_are_read_relative_to_the_pointer() -> None:
    """The features of offsets do not change when keypoints and pointer move together."""
    torch.manual_seed(0)
    places = LatentSpec("continuous", (1, 1), 4, is_xy=True)
    model = GoalPolicy(SMALL, places, POINTER)
    plain = GoalPolicy(SMALL, LatentSpec("continuous", (1, 1), 4), POINTER)
    first, width = (next(iter(each.net.parameters())).shape[1] for each in (model, plain))
    assert first == width + 2 * 4 * 2 * len(model.WAVELENGTHS)
    with torch.no_grad():
        next(iter(model.net.parameters()))[:, :width] = 0  # only the Fourier features remain
    seen, goal = 0.5 * torch.rand(3, 1, 4), 0.5 * torch.rand(3, 1, 4)
    last = torch.zeros(3, 2)
    shift = torch.tensor([0.25, -0.125])
    step = model(seen, goal, last) - last
    moved = model(seen + shift.repeat(2), goal + shift.repeat(2), last + shift) - last - shift
    assert step.abs().min() > 0 and torch.allclose(step, moved, atol=1e-5)
    assert not torch.allclose(step, model(seen + shift.repeat(2), goal, last) - last, atol=1e-4)


def test_a_latent_spec_survives_its_plain_values() -> None:
    places = LatentSpec("continuous", (1, 1), 4, is_xy=True)
    described = places.as_dict()
    assert LatentSpec.from_dict(described) == places
    del described["is_xy"]
    with pytest.raises(ValueError, match="no is_xy"):
        LatentSpec.from_dict(described)
