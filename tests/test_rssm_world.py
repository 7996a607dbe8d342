"""The RSSM as a world: alone, and over the latents of a tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_rssm import CONFIG, MOUSE, SMALL, a_batch, rssm, some_frames
from torch import Tensor
from untrained_run import write_run

import train_dynamics
from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.dynamics.rssm import Rssm, RssmConfig
from models.dynamics.rssm_latents import RssmLatents, RssmLatentsConfig
from models.layers.patch_image import to_frames
from models.planning.planner import Planner, PlannerConfig, can_plan
from models.world import World
from pipeline import checkpoint as ckpt
from pipeline.batches.clip_batches import ClipBatches
from pipeline.inference.load_world import load_world
from pipeline.training.train_config import TrainConfig


def test_a_frame_alone_is_drawn_as_the_first_of_an_episode():
    model = rssm().eval()
    world = World(model, model)
    frames = some_frames(3)
    with torch.no_grad():
        state = world.reset(frames[:, None], MOUSE.empty(3, 0))
        assert torch.equal(world.decode(state), world.reconstruct(frames))
    assert world.state_spec != world.latents and world.start_frames == 1


def test_an_untrained_decoder_draws_the_mean_frame_of_the_first_batch():
    torch.manual_seed(0)
    model = Rssm(CONFIG, (16, 24), MOUSE).train()
    frames = some_frames(4, 6)
    batch = replace(a_batch(model, 4), frames=frames)
    for part in (batch.rows(0, 1), batch.rows(1, 4)):
        model.loss(part)
    assert not model.capturable
    with torch.no_grad():
        model.after_step()
        drawn = model.eval().decode(torch.zeros(1, 1, 56))
    mean = frames.float().mean((0, 1)).round()
    assert (drawn[0].float() - mean).abs().max() <= 1 and model.capturable


@pytest.mark.parametrize(
    "changes, size, message",
    [
        ({}, (16, 20), "frames of 16 x 20 are not divisible into patches of 8"),
        ({"embed_dim": 56}, (16, 24), "--model.embed-dim 56 is the width of the state"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: Any, size: tuple[int, int], message: str):
    with pytest.raises(ValueError, match=message):
        Rssm(replace(CONFIG, **changes), size, MOUSE)


def test_blocks_divide_the_state():
    with pytest.raises(ValueError, match="--deter-dim 32 is not divisible by --num-blocks 5"):
        replace(CONFIG, num_blocks=5)


def test_it_learns_the_toy_world(tmp_path: Path):
    """Rollouts know where things go: nearer than the mean frame, and than with other actions."""
    dataset = EpisodeDataset(write_toy_shards(tmp_path / "shards", episodes=40, length=24, seed=3))
    config = RssmConfig(deter_dim=128, num_groups=16, num_classes=8, hidden_dim=64, embed_dim=64,
                        channels=16, clip_length=12)  # fmt: skip
    torch.manual_seed(0)
    model = Rssm(config, dataset.image_size, dataset.actions).train()
    clips = ClipBatches(Clips(dataset, "train", 12), model.needs)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    rng, first = np.random.default_rng(0), {}
    for _ in range(120):
        losses = model.loss(clips.batch(rng.integers(0, len(clips), 16)))
        first = first or {k: float(v.detach()) for k, v in losses.items()}
        optimizer.zero_grad()
        sum((v for v in losses.values() if v.requires_grad), torch.zeros(())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()
        with torch.no_grad():
            model.after_step()
    world = World(model, model)
    batch = Clips(dataset, "train", 12).batch(np.arange(0, len(clips), 9))
    with torch.no_grad():
        state = world.reset(batch.frames[:, :4], batch.actions[:, :3])
        other = state
        for t in range(3, 8):
            state = world.step(state, batch.actions[:, t])
            other = world.step(other, batch.actions.roll(7, 0)[:, t])
        truth = batch.frames[:, 8].float()
        errors = [(world.decode(s).float() - truth).square().mean() for s in (state, other)]
        variance = (truth - truth.mean(0)).square().mean()
    assert losses["reward"] < 0.6 * first["reward"]
    assert errors[0] < 0.7 * variance and errors[0] < 0.85 * errors[1]


@pytest.mark.parametrize("method", ["keypoints", "vqvae"])
def test_over_the_latents_of_a_tokenizer_it_is_a_world_like_any_other(tmp_path: Path, method: str):
    dataset = EpisodeDataset(write_toy_shards(tmp_path / "shards", episodes=6, length=24))
    write_run(tmp_path, dataset, controllers=False, method=method)
    train = TrainConfig(steps=4, batch_size=4, eval_every=2, save_every=2, log_every=1)
    config = train_dynamics.Config(
        tmp_path, RssmLatentsConfig(**SMALL, patch_dim=6), num_eval_clips=2, train=train,
        device="cpu", restart=True,
    )  # fmt: skip
    train_dynamics.main(config)
    world = load_world(tmp_path)
    assert isinstance(world.dynamics, RssmLatents) and world.state_spec != world.latents
    clip = Clips(dataset, "test", 6).batch(np.arange(3))
    with torch.no_grad():
        state = world.reset(clip.frames[:, :3], clip.actions[:, :2])
        drawn = world.decode(world.rollout(state, clip.actions[:, 2:5]))
        goal = world.embed(clip.frames[:, -1])
    assert drawn.shape == clip.frames[:, 0].shape and drawn.dtype == torch.uint8
    vectors = world.vectors(goal)
    size = world.tokenizer.latents.num_patches * world.tokenizer.latents.dim
    assert vectors.shape == (3, 1, size) and vectors.dtype == torch.float32
    assert can_plan(world)


def test_goals_are_compared_by_what_a_state_shows():
    """Vectors are the drawn frame, in cells of 4 pixels, and blind to what is not drawn."""
    model = rssm().eval()
    with torch.no_grad():
        latents = torch.randn(2, 3, 1, 56)
        vectors = model.state_vectors(latents)
        patches = model.decoder(latents.flatten(0, -2))
        frames = to_frames(patches, (16, 24), 8)
        cells = torch.nn.functional.avg_pool2d(frames, 4)  # (6, 3, 4, 6)
        assert vectors.shape == (2, 3, 1, 3 * 4 * 6)
        theirs = cells.flatten(1).sort().values.view(2, 3, -1)
        assert torch.allclose(vectors[:, :, 0].sort().values, theirs, atol=1e-5)
        unseen = torch.linalg.svd(model.decoder.dense.weight)[2][-1]
        assert torch.allclose(model.state_vectors(latents + 5 * unseen), vectors, atol=1e-4)


def test_captured_steps_learn_what_others_learn(tmp_path: Path):
    """The first step, which sees the background, is never captured."""
    found = []
    for captured in (False, True):
        run = tmp_path / str(captured)
        write_toy_shards(run / "shards", episodes=6, length=16, size=16)
        train = TrainConfig(
            steps=8, batch_size=4, eval_every=8, save_every=8, cuda_graph=captured,
            precision="fp32",
        )  # fmt: skip
        config = replace(CONFIG, context_frames=2, clip_length=4)
        train_dynamics.main(train_dynamics.Config(run, config, num_eval_clips=2, train=train))
        found.append(ckpt.load(run / "dynamics" / "last.pt", "dynamics")["model"])
    plain, captured = found
    assert plain["background.std"].any()
    assert all(torch.allclose(plain[k], captured[k], atol=1e-4) for k in plain)


def test_a_policy_prior_reads_a_goals_latents_and_the_search_compares_its_vectors():
    model = rssm().eval()
    world = World(model, model)
    seen = []

    class Prior:
        action_block = 2

        def __call__(self, latents: Tensor, goal: Tensor, last_action: Tensor) -> Tensor:
            seen.append((latents.shape, goal.shape))
            return last_action

    config = PlannerConfig(num_samples=4, iterations=2, num_elites=2, horizon=2, action_block=2)
    with torch.no_grad():
        state = world.reset(some_frames(3, 1), MOUSE.empty(3, 0))
        goals = world.embed(some_frames(6)).unflatten(0, (3, 2))
        for goal in (goals[:, 0], goals):  # one each, and a set of two each
            plan = Planner(config, world, policy_prior=Prior()).plan(state, goal, None)
            assert plan.actions.shape == (3, 4, 2) and plan.cost.isfinite().all()
    assert set(seen) == {((12, 1, 56), (12, 1, 56))}
