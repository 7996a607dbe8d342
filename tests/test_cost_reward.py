"""An actor-critic that is rewarded by what a task's cost falls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_planner import Follower
from torch import Tensor
from untrained_run import write_run

import train_controller
from data.actions import ActionSpec
from data.batch import Batch
from data.pusht.scripted_episodes import ScriptedEpisodes
from data.shards.build_shards import build
from data.shards.episode_dataset import EpisodeDataset
from models.controllers.cost_reward import CostReward
from models.controllers.dreamer import Dreamer, DreamerConfig
from models.controllers.policy import PolicyConfig
from models.dynamics.dynamics import State
from models.tokenizers.tokenizer import LatentSpec
from pipeline import checkpoint, presets

POINT = LatentSpec("continuous", (1, 1), 2)
PLACES = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (100.0, 100.0))
GOAL = torch.tensor([0.5, -0.4])


class World(Follower):
    """A `Follower` that is entered from latents and goes on step by step."""

    def start_from(self, latents: Tensor, actions: Tensor) -> State:
        return self.state(latents[:, -1, 0])

    def step_from(self, state: State, action: Tensor) -> State:
        return self.imagine(state, action[:, None])

    def sampled(self, sampling: object) -> Any:
        from contextlib import nullcontext

        return nullcontext()


class Cost:
    """The distance from the goal, looked at every third step."""

    class config:
        action_block = 3

    def start(self, latents: Tensor) -> Tensor:
        return latents[:, 0]

    def follow(self, tracked: Tensor, actions: Tensor, latents: Tensor) -> Tensor:
        assert actions.shape[1] == 3
        return latents[:, 0]

    def cost(self, tracked: Tensor, goal: Tensor | None = None) -> Tensor:
        return (tracked - GOAL).norm(dim=1)


def cost_reward() -> CostReward:
    world: Any = World()
    cost: Any = Cost()
    return CostReward(world, cost)


def test_rewards_add_up_to_what_the_cost_has_fallen():
    world = cost_reward()
    for _ in range(2):  # a rollout begins anew
        state = world.start_from(torch.rand(4, 1, 1, 2), torch.zeros(4, 0, 2))
        before = (state.latents[:, 0] - GOAL).norm(dim=1)
        rewards = []
        for _ in range(6):
            state = world.step_from(state, torch.rand(4, 2) * 2 - 1)
            rewards.append(state.reward)
        fallen = before - (state.latents[:, 0] - GOAL).norm(dim=1)
        assert torch.allclose(torch.stack(rewards).sum(0), fallen, atol=1e-6)
        assert all((rewards[step] == 0).all() for step in (0, 1, 3, 4))
        assert (rewards[2] != 0).all() and (rewards[5] != 0).all()


def test_gradients_through_the_world_bring_the_actor_to_the_goal():
    torch.manual_seed(0)
    policy = PolicyConfig(hidden_dim=32, num_modes=1, min_std=0.05, dropout=0.0)
    config = DreamerConfig(
        policy, horizon=6, actor_gradient="dynamics", rewards="task_cost", bc_weight=0.0,
        entropy=0.0, min_return_scale=0.1,
    )  # fmt: skip
    model, world = Dreamer(config, POINT, PLACES), cost_reward()
    optimizer = torch.optim.AdamW(model.train().parameters(), 1e-2)

    def batch(count: int) -> Batch:
        latents = torch.rand(count, 1, 1, 2) * 2 - 1
        none = torch.zeros(count, 1, 2)
        return Batch(
            latents=latents, actions=none, extra={"bc_latents": latents, "bc_actions": none}
        )

    def distance() -> float:
        latents = batch(64).require("latents")[0]
        end = model.imagine(world, latents, torch.zeros(64, 0, 2), 12).latents[-1, :, 0]
        return float((end - GOAL).norm(dim=1).mean())

    before = distance()
    for _ in range(60):
        losses = model.loss(batch(64), world)
        optimizer.zero_grad()
        sum((v for v in losses.values() if v.requires_grad), torch.zeros(())).backward()
        optimizer.step()
        with torch.no_grad():
            model.after_step()
    assert distance() < 0.5 * before


def test_values_teach_the_actor_and_not_the_critic():
    torch.manual_seed(0)
    config = DreamerConfig(PolicyConfig(hidden_dim=16), actor_gradient="dynamics")
    model = Dreamer(config, POINT, PLACES)
    latents = torch.rand(3, 4, 1, 2, requires_grad=True)
    model.values(latents).sum().backward()
    assert latents.grad is not None
    assert all(weight.grad is None for weight in model.critic.parameters())


def test_its_recipe_trains_it_from_the_clone_and_the_cost_of_the_run(tmp_path: Path):
    build(ScriptedEpisodes(6, 32, 0), tmp_path / "shards", "", 0, 1)
    write_run(tmp_path, EpisodeDataset(tmp_path / "shards"), False, "keypoints")
    recipe = ["keypoints", "debug", "value_gradients", "debug"]
    config = presets.apply(train_controller.Config(), "controller", recipe)
    assert config.methods == ("actor_critic",)
    methods = ("bc", "task_cost", "actor_critic")
    train_controller.main(replace(config, run=tmp_path, methods=methods))
    found = checkpoint.load(tmp_path / "controller" / "last.pt", "controller")
    assert found["config"]["rewards"] == "task_cost" and found["step"] == 4
    cost = checkpoint.load(tmp_path / "controller" / "task_cost" / "best.pt", "controller")
    assert found["task_cost"]["fingerprint"] == cost["fingerprint"]
    others = replace(config, run=tmp_path, min_reward=0.05)
    for method in ("bc", "actor_critic"):
        with pytest.raises(ValueError, match=r"begun with min_reward = 0\.1, but now it is 0\.05"):
            train_controller.main(replace(others, methods=(method,)))
