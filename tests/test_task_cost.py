"""The cost of a task, learned on a plane where an agent pushes a block to a corner."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from data.actions import ActionSpec
from data.batch import Batch
from models.controllers.task_cost import TaskCost, TaskCostConfig, farthest_points, soft_clip
from models.registry import DataSpec, build_controller, describe
from models.tokenizers.tokenizer import LatentSpec

ACTIONS = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (100.0, 100.0), "", pointer=True)
LATENTS = LatentSpec("continuous", (1, 1), 12)
NAMES = ("agent_x", "agent_y", "block_x", "block_y", "block_angle")
GOAL = torch.tensor([70.0, 30.0, 1.0])
SMALL = TaskCostConfig(NAMES, hidden_dim=64, num_goals=8, action_block=3)
REACH = 12.0  # from the agent's next target to a block that it moves


def latents_of(states: Tensor) -> Tensor:
    """(..., 5) -> (..., 1, 12): a fixed, smooth function that keeps everything."""
    angle = states[..., 4:]
    x = torch.cat([states[..., :4] / 50 - 1, angle.sin(), angle.cos()], -1)
    weight = torch.randn(6, 12, generator=torch.Generator().manual_seed(7))
    return (x @ weight + 0.1 * torch.sin(x @ weight.flip(0)))[..., None, :]


def rewards_of(states: Tensor) -> Tensor:
    """1 in the middle of the goal, 0 from 20 units, or the same with 0.5 radians for each 10."""
    turned = states[..., 4] - GOAL[2]
    turned = torch.atan2(turned.sin(), turned.cos())
    distance = (states[..., 2:4] - GOAL[:2]).square().sum(-1) + (20 * turned).square()
    return (1.05 - distance.sqrt() / 20).clamp(0, 1)


def clips(count: int, seed: int) -> Batch:
    """Blocks of three actions: the block is moved, by a tenth of the way, where the agent goes
    near it.  Half the blocks are near the goal."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    states = torch.cat([100 * uniform(count, 4), 2 * math.pi * uniform(count, 1)], 1)
    near = torch.randn(count, 3, generator=generator) * torch.tensor([6.0, 6.0, 0.3])
    half = count // 2
    states[:half, 2:] = GOAL + near[:half]
    touching = uniform(count) < 0.5
    target = torch.where(touching[:, None], states[:, 2:4] + 8 * uniform(count, 2), states[:, :2])
    after = states.clone()
    after[:, :2] = target
    moved = (target - states[:, 2:4]).norm(dim=1) < REACH
    after[:, 2:4] += torch.where(moved[:, None], 0.1 * (target - states[:, :2]), 0.0)
    between = [states + (after - states) * step / 3 for step in range(4)]
    all_states = torch.stack(between, 1)
    actions = (target / 50 - 1)[:, None].expand(-1, 4, -1)
    return Batch(
        latents=latents_of(all_states),
        actions=actions,
        rewards=rewards_of(all_states),
        extra={"states": all_states},
    )


def train(config: TaskCostConfig, steps: int) -> TaskCost:
    torch.manual_seed(0)
    model = TaskCost(config, LATENTS, ACTIONS)
    model.begin(clips(4000, seed=1))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-3)
    for step in range(steps):
        losses = model.loss(clips(256, seed=2 + step))
        optimizer.zero_grad()
        torch.stack([v for v in losses.values() if v.requires_grad]).sum().backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def trained() -> TaskCost:
    return train(SMALL, 800)


def at(agent: Any, block: Any) -> Tensor:
    """The latents of one state."""
    return latents_of(torch.tensor([[*agent, *block]], dtype=torch.float32))


@pytest.mark.slow
def test_it_reads_the_state_and_the_reward_on_held_out_clips(trained: TaskCost) -> None:
    metrics = trained.validate(clips(2000, seed=10**6))
    assert metrics["block_x"] < 1.5 and metrics["block_y"] < 1.5 and metrics["agent_x"] < 3
    assert metrics["block_angle"] < 0.1 and metrics["reward_error"] < 0.08
    assert metrics["reward_correlation"] > 0.8 and metrics["change_accuracy"] > 0.9
    assert metrics["error"] > 0


def test_the_cost_grows_away_from_the_goal_wherever_the_agent_stands(trained: TaskCost) -> None:
    costs = [
        torch.stack([trained(at(agent, (70.0 - away, 30.0, 1.0)))[0] for away in (0, 5, 15, 60)])
        for agent in ((10.0, 10.0), (90.0, 80.0), (20.0, 90.0))
    ]
    for row in costs:
        assert bool((row.diff() > 0).all()) and row[0] < 0.3
    spread = torch.stack(costs).std(0)
    assert bool((spread < 0.1 * torch.stack(costs).mean(0) + 0.05).all())
    turned = trained(at((10.0, 10.0), (70.0, 30.0, 1.0 + math.pi)))
    assert turned > costs[0][1]


def test_a_given_goal_costs_what_the_own_one_does_from_there(trained: TaskCost) -> None:
    pose = (70.0, 30.0, 1.0)
    cost = TaskCost(replace(trained.config, goal=pose), LATENTS, ACTIONS)
    cost.load_state_dict(trained.state_dict())
    # from (30, 60), a quarter turn further, the same step away
    away, turned = at((70.0, 50.0), (75.0, 30.0, 1.0)), at((10.0, 60.0), (30.0, 65.0, 2.57))
    goal = torch.tensor([[30.0, 60.0, 1.0 + math.pi / 2]])
    with torch.no_grad():
        own, given = cost(away), cost.cost(cost.start(turned), goal)
        assert float(given) == pytest.approx(float(own), abs=0.15)
        assert float(given) < 0.5 * float(cost(turned))
        there = cost.cost(cost.start(at((10.0, 10.0), (30.0, 60.0, 2.57))), goal)
        assert there < given
        # latents are no pose, and the pose that it has moves nothing
        tracked = cost.start(away)
        assert torch.equal(cost.cost(tracked, away), own)
        torch.testing.assert_close(cost.cost(tracked, torch.tensor([pose])), own)


def test_it_is_learned_of_episodes_with_goals_of_their_own() -> None:
    def moved(batch: Batch) -> Batch:
        """Half of the clips are called clips of another goal, from which they earn as much."""
        (states,) = batch.require("states")
        states, other = states.clone(), torch.arange(len(batch)) % 2 == 1
        states[other, :, 2:4] -= 25.0
        states[other, :, :2] -= 25.0
        goals = torch.where(other[:, None], torch.tensor([45.0, 5.0, 1.0]), GOAL)
        extra = {"states": states, "goals": goals}
        return replace(batch, latents=latents_of(states), extra=extra)

    torch.manual_seed(0)
    model = TaskCost(replace(SMALL, goal=(70.0, 30.0, 1.0)), LATENTS, ACTIONS)
    model.begin(moved(clips(4000, seed=1)))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(400):
        losses = model.loss(moved(clips(256, seed=2 + step)))
        optimizer.zero_grad()
        torch.stack([v for v in losses.values() if v.requires_grad]).sum().backward()
        optimizer.step()
    metrics = model.eval().validate(moved(clips(2000, seed=10**6)))
    assert metrics["reward_error"] < 0.12 and metrics["reward_correlation"] > 0.7
    alone = clips(2000, seed=10**6)
    assert model.validate(alone)["reward_error"] < 0.12


def test_what_the_agent_does_not_touch_cannot_drift_to_the_goal(trained: TaskCost) -> None:
    start, drifted = at((10.0, 90.0), (60.0, 30.0, 1.0)), at((12.0, 90.0), (70.0, 30.0, 1.0))
    far = torch.tensor([[12.0, 90.0]]).expand(3, 2)[None] / 50 - 1
    pushed = torch.tensor([[62.0, 32.0]]).expand(3, 2)[None] / 50 - 1
    before = trained.start(start)
    costs = [trained.cost(trained.follow(before, actions, drifted)) for actions in (far, pushed)]
    assert abs(costs[0] - trained.cost(before)) < 0.1 * trained.cost(before)
    assert costs[1] < 0.5 * trained.cost(before)


def test_goals_are_rewarded_frames_far_from_each_other(trained: TaskCost) -> None:
    features = trained.read(trained.goals)
    states = trained.states(features)
    assert bool((rewards_of(states) > 0.7).all())
    assert states[:, :2].std(0).min() > 10  # the agent stands in many places


def test_without_states_what_differs_among_rewarded_frames_counts_little() -> None:
    model = train(TaskCostConfig(hidden_dim=64, num_goals=8, action_block=3), 60)
    here, elsewhere = at((10.0, 10.0), GOAL.tolist()), at((90.0, 80.0), GOAL.tolist())
    off = at((10.0, 10.0), (40.0, 60.0, 1.0))
    assert (elsewhere - here).norm() > 1  # the agent alone changes the latents a lot
    norm = [float(model.norm(model.read(x))) for x in (here, elsewhere, off)]
    assert abs(norm[0] - norm[1]) < 0.5 * (norm[2] - norm[0])
    assert "block_x" not in model.validate(clips(500, seed=5))


def test_16_bits_around_it_do_not_blur_the_cost(trained: TaskCost) -> None:
    latents = at((10.0, 10.0), (66.0, 30.0, 1.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(trained(latents), trained.cost(trained.start(latents)))
        tracked = trained.follow(trained.start(latents), torch.zeros(1, 3, 2), latents)
        assert tracked.dtype == torch.float32


def test_what_it_cannot_learn_from_is_refused_in_one_line() -> None:
    data = clips(100, seed=0)
    data.rewards = torch.zeros(100, 4)
    model = TaskCost(SMALL, LATENTS, ACTIONS)
    with pytest.raises(ValueError, match="every reward in the data is 0, so there is no goal"):
        model.begin(data)
    codes = LatentSpec("discrete", (4, 4), 8, codebook_size=16)
    with pytest.raises(ValueError, match="this world has codes; use --preset keypoints"):
        TaskCost(SMALL, codes, ACTIONS)


def test_every_weight_has_a_gradient_so_that_processes_can_share_the_work() -> None:
    for names in (NAMES, ()):
        model = TaskCost(replace(SMALL, state_names=names), LATENTS, ACTIONS)
        model.begin(clips(400, seed=1))
        losses = model.loss(clips(100, seed=2))
        torch.stack([v for v in losses.values() if v.requires_grad]).sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_rewards_of_all_or_nothing_leave_out_what_varies_at_the_goal() -> None:
    data = clips(4000, seed=1)
    assert data.rewards is not None
    data.rewards = (data.rewards > 0.8).float()
    model = TaskCost(SMALL, LATENTS, ACTIONS)
    model.begin(data)
    agent, block = (model.metric[rows].norm(dim=1) for rows in (slice(0, 2), slice(2, 4)))
    assert block.min() > 3 * agent.max()


def test_held_out_clips_without_rewards_are_measured_and_told(trained: TaskCost) -> None:
    data = clips(200, seed=3)
    data.rewards = torch.zeros(200, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = trained.validate(data)
    assert metrics["highest_reward"] == 0 and "reward_correlation" not in metrics
    assert all(math.isfinite(value) for value in metrics.values())


def test_latents_too_wide_to_whiten_are_refused_in_one_line() -> None:
    wide = LatentSpec("continuous", (8, 8), 384)
    with pytest.raises(ValueError, match="have 24,576 numbers, more than 4,096; record states"):
        TaskCost(TaskCostConfig(), wide, ACTIONS)
    TaskCost(TaskCostConfig(NAMES, hidden_dim=8), wide, ACTIONS)


def test_a_checkpoint_builds_it_again(trained: TaskCost) -> None:
    again = build_controller(describe(SMALL), DataSpec((8, 8), ACTIONS, LATENTS))
    again.load_state_dict(trained.state_dict())
    latents = at((10.0, 10.0), (66.0, 30.0, 1.0))
    assert isinstance(again, TaskCost) and torch.equal(again.eval()(latents), trained(latents))


def test_soft_clip_and_farthest_points() -> None:
    assert torch.allclose(soft_clip(torch.tensor([-1.0, 0.5, 2.0])), torch.tensor([0, 0.5, 1.0]))
    points = torch.tensor([[0.0], [1.0], [10.0], [9.0]])
    assert farthest_points(points, 3).tolist() == [0, 2, 1]
    assert farthest_points(points[:1], 3).tolist() == [0, 0, 0]
