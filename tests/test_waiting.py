"""Nothing that is captured as a CUDA graph waits for the GPU: training steps, worlds, searches."""

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

from data.batch import Batch
from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.controllers.actor_critic import ActorCriticConfig
from models.controllers.goal_policy import GoalPolicyConfig
from models.controllers.policy import PolicyConfig
from models.method import TrainableModule
from models.planning.planner import Planner, PlannerConfig
from models.registry import DataSpec, build_controller
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
    "a mask as an index": lambda x: x[x > 0],
    "a write at a mask": lambda x: x.clone().index_put_((x > 0,), torch.zeros(())),
    "a count": lambda x: torch.bincount(x.long()),
    "a draw that checks its weights": lambda x: torch.multinomial(x, 2),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_found(name):
    x = torch.ones(4)
    with nothing_waits():
        (x * 2).sum()
        x[torch.zeros_like(x).long()]
    with pytest.raises(AssertionError, match="waits for a GPU"), nothing_waits():
        WAITING[name](x)


def take_step(model: Any, batch: Batch, *context: Any) -> None:
    """A training step in which nothing may wait."""
    assert model.capturable
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.SGD(model.param_groups(), 0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with nothing_waits():
        losses = model.loss(batch, *context)
        sum((v for v in losses.values() if v.requires_grad), torch.zeros(())).backward()
        optimizer.step()
        with torch.no_grad():
            model.after_step()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved & trained
    if type(model).after_step is not TrainableModule.after_step:
        assert moved - trained


# -- training ------------------------------------------------------------------------------------


def llama(decoding: Any) -> tuple[TrainableModule, Batch]:
    return dynamics(decoding), Batch(None, *episode(), torch.rand(3, 6), torch.ones(3, 6))


def vqvae() -> tuple[TrainableModule, Batch]:
    """With codebooks: before, k-means reads values."""
    model = VqVae(VqVaeConfig(**SMALL)).train()
    steps = 0
    while not model.capturable:
        model.loss(Batch(frames=noise()))
        with torch.no_grad():
            model.after_step()
        steps += 1
    assert steps == SMALL["vq_start_step"]
    return model, Batch(frames=noise())


def keypoints() -> tuple[TrainableModule, Batch]:
    config = KeypointsConfig((32, 32), num_keypoints=4, channels=16, num_res_blocks=1)
    return Keypoints(config), Batch(frames=noise()[:, None])


def predicted() -> tuple[TrainableModule, Batch]:
    return predictor(), Batch(None, *vectors(), torch.rand(3, 10), torch.ones(3, 10))


TRAINED = {
    "vqvae": vqvae,
    "keypoints": keypoints,
    "parallel llama": lambda: llama("parallel"),
    "autoregressive llama": lambda: llama("autoregressive"),
    "predictor": predicted,
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_step_waits_for_nothing(name):
    torch.manual_seed(0)
    model, batch = TRAINED[name]()
    model.train().requires_grad_(True)
    take_step(model, batch)


@pytest.fixture(scope="module", params=["vqvae", "keypoints"])
def world_and_clips(request, tmp_path_factory) -> tuple[World, Any]:
    run = tmp_path_factory.mktemp(request.param)
    write_toy_shards(run / "shards", episodes=6, length=20)
    dataset = EpisodeDataset(run / "shards")
    world = load_world(write_run(run, dataset, controllers=False, method=request.param))
    return world, Clips(dataset, "train", 20).batch(np.arange(2))


def encoded(world: World, clips: Any) -> tuple[Tensor, Tensor]:
    """Latents (B, T, N) or (B, T, P, D), and normalized actions (B, T, A)."""
    with torch.no_grad():
        latents = world.encode_clip(clips.frames)
    return latents, world.actions.normalize(clips.actions)


def controller(world: World, config: Any) -> TrainableModule:
    data = DataSpec(world.image_size, world.actions, world.state_spec)
    model = build_controller(config, data).train()
    model.load_codebook(world.tokenizer)
    return model


def test_a_training_step_of_a_goal_policy_waits_for_nothing(world_and_clips):
    world, clips = world_and_clips
    if world.latents.kind == "discrete":
        pytest.skip("gradients do not pass through codes")
    policy = PolicyConfig(hidden_dim=16)
    config = GoalPolicyConfig(policy, action_block=2, horizon=2, max_goal_offset=4)
    latents, actions = encoded(world, clips)
    take_step(controller(world, config), Batch(latents=latents, actions=actions), world)


def test_a_training_step_of_a_behavior_clone_waits_for_nothing(world_and_clips):
    world, clips = world_and_clips
    latents, actions = encoded(world, clips)
    config = PolicyConfig(channels=8, num_keypoints=4, hidden_dim=16)
    batch = Batch(latents=latents[:, 5:6], actions=actions[:, 5:6])
    take_step(controller(world, config), batch)


def test_a_training_step_of_an_actor_critic_waits_for_nothing(world_and_clips):
    world, clips = world_and_clips
    latents, actions = encoded(world, clips)
    policy = PolicyConfig(channels=8, num_keypoints=4, hidden_dim=16)
    demos = {"bc_latents": latents[:, 5:6], "bc_actions": actions[:, 5:6]}
    batch = Batch(latents=latents[:, :3], actions=actions[:, :3], extra=demos)
    take_step(controller(world, ActorCriticConfig(policy, horizon=3)), batch, world)


# -- worlds and searches -------------------------------------------------------------------------


def test_neither_a_step_nor_its_decoding_waits(world_and_clips):
    world, clips = world_and_clips
    with torch.no_grad():
        state = world.reset(clips.frames[:, :3], clips.actions[:, :2])
        world.decode(state)
        for action in clips.actions[:, 2:14].unbind(1):
            with nothing_waits():
                state = world.step(state, action)
                world.decode(state)


@pytest.mark.parametrize("method", ["cem", "mppi", "shooting"])
def test_a_search_waits_for_nothing(world_and_clips, method):
    world, clips = world_and_clips
    config = PlannerConfig(
        method, num_samples=8, iterations=3, num_elites=2, horizon=2, action_block=2
    )

    def watched(search: Callable[..., Any]) -> Callable[..., Any]:
        def searched(*args: Any) -> Any:
            with nothing_waits():
                return search(*args)

        return searched

    with torch.no_grad():
        state = world.reset(clips.frames[:, :3], clips.actions[:, :2])
        goal = world.encode(clips.frames[:, 9])
        Planner(config, world, watched).plan(state, goal, clips.actions[:, 2], None)
