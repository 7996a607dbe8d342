"""Runs of each kind as the service sees them: what a latent is, and that predictions are the
world's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_rssm import CONFIG, MOUSE, rssm
from untrained_run import save, write_run

from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.registry import DataSpec
from pipeline.serve.checked_input import actions_of, latents_of
from pipeline.serve.jobs import Work
from pipeline.serve.latent_model import WorldModel, load_latent_model
from pipeline.serve.model_worker import ModelWorker
from pipeline.serve.refused import Refused


def frames(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("method", ["vqvae", "keypoints"])
def test_predictions_are_those_of_the_world(method, tmp_path):
    write_toy_shards(tmp_path / "shards", episodes=6, size=32)
    write_run(tmp_path, EpisodeDataset(tmp_path / "shards"), method=method)
    model = load_latent_model(tmp_path)
    assert isinstance(model, WorldModel)
    actions = torch.tensor([[[100.0, 50.0], [300.0, 400.0]]]).repeat(2, 1, 1)
    with torch.no_grad():
        images = frames(2, 32, 32)
        latents = model.encode(images)
        found = model.rollout(latents, actions)
        state = model.world.reset(images[:, None], torch.zeros(2, 0, 2))
        for action in actions.unbind(1):
            state = model.world.step(state, action)
        assert torch.allclose(found[:, -1].flatten(1), state.latents.float().flatten(1), atol=1e-4)
        assert model.decode(latents).shape == (2, 3, 32, 32)
    worker, lengths = ModelWorker(model, None), (1, 2, 1)
    works = [
        Work("predict", latents[i % 2].numpy(), actions[0, :steps].numpy(), patches=True)
        for i, steps in enumerate(lengths)
    ]
    for done, work in zip(worker.answer(works), works, strict=True):
        (alone,) = worker.answer([work])
        assert done.pooled.shape == alone.pooled.shape == (work.units, model.spec.latent_dim)
        assert np.allclose(done.pooled, alone.pooled, atol=2e-2)  # bf16, where the machine has it
    spec = model.spec
    assert spec.latent_dim == spec.num_patches * spec.dim
    assert ("plan" in spec.cannot) == (method == "vqvae") == (spec.kind == "discrete")
    pooled = model.pool(latents)
    assert torch.equal(model.unpool(pooled), latents)  # nothing is lost without patches


def test_codes_are_whole_numbers_and_others_are_refused(tmp_path):
    write_toy_shards(tmp_path / "shards", episodes=6, size=32)
    write_run(tmp_path, EpisodeDataset(tmp_path / "shards"), controllers=False)
    spec = load_latent_model(tmp_path).spec
    good = [float(i % spec.codebook_size) for i in range(spec.latent_dim)]
    assert latents_of(spec, good, None).shape == (spec.latent_dim,)
    for bad in (0.5, -1.0, float(spec.codebook_size)):
        with pytest.raises(Refused, match="no codes; they go from 0"):
            latents_of(spec, [bad, *good[1:]], None)


def test_a_world_whose_state_is_more_than_a_frame_is_served_by_its_state(tmp_path):
    model = rssm()
    spec = DataSpec((16, 24), MOUSE, model.latents)
    save(tmp_path / "dynamics", "dynamics", model, CONFIG, spec, (tmp_path, "0" * 16))
    served = load_latent_model(tmp_path)
    assert isinstance(served, WorldModel)
    assert served.spec.dim == served.world.state_spec.dim != served.world.latents.dim
    world = served.world
    with torch.no_grad():
        images = frames(1, 16, 24)
        latents = served.encode(images)
        assert torch.allclose(latents, world.embed(images), atol=1e-5)
        action = torch.as_tensor(MOUSE.sample(1, np.random.default_rng(0)))
        given = action[:, None, None].float() if action.ndim == 1 else action[:, None].float()
        found = served.rollout(latents, given)[:, 0]
        expected = world.step(world.reset(images[:, None], MOUSE.empty(1, 0)), action).latents
    assert torch.allclose(found, expected, atol=2e-2)  # bf16, where the machine has it


def test_actions_are_checked_by_the_runs_own_space(tmp_path):
    write_toy_shards(tmp_path / "shards", episodes=6, size=32)
    write_run(tmp_path, EpisodeDataset(tmp_path / "shards"), method="keypoints")
    model = load_latent_model(tmp_path)
    assert actions_of(model.spec, [[1, 2], [3, 4]], "aug_seq").shape == (2, 2)
    with pytest.raises(Refused, match="has 1 numbers, and a step of this run 2"):
        actions_of(model.spec, [[1]], "aug_params")
    with pytest.raises(Refused, match="outside of this run's actions"):
        actions_of(model.spec, [[1, 600]], "aug_params")
    worker = ModelWorker(model, None)
    plan = Work("plan", np.zeros((2, 3, 32, 32), np.uint8), steps=7, rollouts=32)
    first, again = (worker.answer([plan])[0].pooled for _ in range(2))
    assert first.shape == (7, 2) and np.array_equal(first, again)
