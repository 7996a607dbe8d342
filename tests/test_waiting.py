"""What is recorded as a CUDA graph waits for no GPU: steps of training, of worlds, and searches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_llama import dynamics, episode
from test_predictor import episode as vectors
from test_predictor import predictor
from test_vqvae import SMALL, noise
from torch import Tensor
from untrained_run import write_run
from waiting import nothing_waits

from data.clips import Clips
from data.shards import EpisodeDataset
from data.toy import write_toy_shards
from models.controllers.actor_critic import ActorCriticConfig
from models.controllers.goal_policy import GoalPolicy, GoalPolicyConfig
from models.controllers.planner import Planner, PlannerConfig
from models.controllers.policy import PolicyConfig
from models.registry import build_controller
from models.tokenizers.keypoints import Keypoints, KeypointsConfig
from models.tokenizers.vqvae import VqVae, VqVaeConfig
from models.world import World
from pipeline.inference.load_world import load_world

WAITING: dict[str, Callable[[Tensor], Any]] = {
    "a number": lambda x: float(x.sum()),
    "a condition": lambda x: 1 if x.sum() > 0 else 0,
    "a list": lambda x: x.tolist(),
    "an array": lambda x: x.numpy(),
    "to the CPU": lambda x: x.cpu(),
    "from a list": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "as many as are true": lambda x: x[x > 0],
    "put where true": lambda x: x.clone().index_put_((x > 0,), torch.zeros(())),
    "a count": lambda x: torch.bincount(x.long()),
    "a draw that looks": lambda x: torch.multinomial(x, 2),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_found(name):
    x = torch.ones(4)
    with nothing_waits():
        (x * 2).sum()
        x[torch.zeros_like(x).long()]
    with pytest.raises(AssertionError, match="waits for a GPU"), nothing_waits():
        WAITING[name](x)


def follow(losses: dict[str, Tensor]) -> None:
    sum((v for v in losses.values() if v.requires_grad), torch.zeros(())).backward()


def codes(decoding: Any) -> tuple[Any, tuple[Any, ...]]:
    return dynamics(decoding), (*episode(), torch.rand(3, 6), torch.ones(3, 6))


def begun_codes() -> tuple[Any, tuple[Any, ...]]:
    model = VqVae(VqVaeConfig(**SMALL)).train()
    steps = 0
    while not model.codebook_initialized:
        model.loss(noise())
        steps += 1
    assert steps == SMALL["continuous_steps"] + 1
    return model, (noise(),)


def keypoints() -> tuple[Any, tuple[Any, ...]]:
    return Keypoints(KeypointsConfig((32, 32), num_keypoints=4, channels=16, num_res_blocks=1)), (
        noise(),
    )


def foretold() -> tuple[Any, tuple[Any, ...]]:
    return predictor(), (*vectors(), torch.rand(3, 10), torch.ones(3, 10))


TRAINED = {
    "vqvae": begun_codes,
    "keypoints": keypoints,
    "codes at once": lambda: codes("frame"),
    "codes one by one": lambda: codes("token"),
    "vectors": foretold,
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_of_training_waits_for_nothing(name):
    torch.manual_seed(0)
    model, given = TRAINED[name]()
    model.train().requires_grad_(True)
    with nothing_waits():
        follow(model.loss(*given))


@pytest.fixture(scope="module", params=["codes", "goals"])
def world_and_clips(request, tmp_path_factory) -> tuple[World, Any]:
    run = tmp_path_factory.mktemp(request.param)
    write_toy_shards(run / "shards", episodes=6, length=20)
    recordings = EpisodeDataset(run / "shards")
    world = load_world(write_run(run, recordings, controllers=False, method=request.param))
    return world, Clips(recordings, "train", 20).batch(np.arange(2))


def test_neither_a_step_nor_a_look_waits(world_and_clips):
    world, shown = world_and_clips
    with torch.no_grad():
        state = world.reset(shown.frames[:, :3], shown.actions[:, :2])
        world.decode(state)
        for action in shown.actions[:, 2:14].unbind(1):
            with nothing_waits():
                state = world.step(state, action)
                world.decode(state)


@pytest.mark.parametrize("method", ["cem", "mppi", "shooting"])
def test_a_search_waits_for_nothing(world_and_clips, method):
    world, shown = world_and_clips
    config = PlannerConfig(
        method, num_samples=8, iterations=3, num_elites=2, horizon=2, action_block=2
    )

    def watched(search: Callable[..., Any]) -> Callable[..., Any]:
        def searched(*given: Any) -> Any:
            with nothing_waits():
                return search(*given)

        return searched

    with torch.no_grad():
        state = world.reset(shown.frames[:, :3], shown.actions[:, :2])
        goal = world.encode(shown.frames[:, 9])
        Planner(config, world, watched).plan(state, goal, shown.actions[:, 2], None)


def test_learning_to_reach_goals_waits_for_nothing(world_and_clips):
    world, shown = world_and_clips
    if world.latents.kind == "discrete":
        pytest.frameskip("gradients do not pass through codes")
    config = GoalPolicyConfig(
        PolicyConfig(hidden_dim=16), action_block=2, horizon=2, max_goal_offset=4
    )
    model = GoalPolicy(config, world.latents, world.actions)
    with torch.no_grad():
        latents = world.encode(shown.frames.flatten(0, 1)).unflatten(0, shown.frames.shape[:2])
    actions = world.actions.normalize(shown.actions)
    with nothing_waits():
        follow(model.loss(world, latents, actions))


@pytest.mark.parametrize("method", ["cloning", "actor_critic"])
def test_a_controller_that_learns_waits_for_nothing(world_and_clips, method):
    world, shown = world_and_clips
    policy = PolicyConfig(channels=8, num_keypoints=4, hidden_dim=16)
    with torch.no_grad():
        latents = world.encode(shown.frames.flatten(0, 1)).unflatten(0, shown.frames.shape[:2])
    actions = world.actions.normalize(shown.actions)
    step = latents[:, 5], actions[:, 5]
    given: tuple[Any, ...] = step
    config: Any = policy
    if method == "actor_critic":
        config = ActorCriticConfig(policy, horizon=3)
        given = world, latents[:, :3], actions[:, :2], *step
    model: Any = build_controller(config, world.latents, world.actions).train()
    model.load_codebook(world.tokenizer)
    with nothing_waits():
        follow(model.loss(*given))
