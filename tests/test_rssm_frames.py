"""Frames of which nothing else is known, as an RSSM infers and draws them, and what its z holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_rssm import CONFIG, KEYS, MODELS, MOUSE, PADS, a_batch, rssm, some_actions, some_frames

from data.actions import ActionSpec
from models.config import from_plain, to_plain
from models.dynamics.rssm import Rssm, RssmConfig
from models.layers.categorical_groups import logits_of, unimix, unimix_probs


def test_frames_are_inferred_as_if_each_began_an_episode():
    """As a world encodes a goal: `start` at one frame."""
    model, embeds = rssm(sample_posterior=False).eval(), torch.randn(5, 4, 20)
    with torch.no_grad():
        found = model.cell.infer_first(embeds)
        alone = model.start(embeds.flatten(0, 1)[:, None, None], MOUSE.empty(20, 0)).latents
    assert torch.allclose(found.flatten(0, 1), alone[:, 0], atol=1e-6)


def test_an_expected_z_is_the_posteriors_probabilities_and_what_a_world_observes():
    model = rssm(expect_posterior=True)
    frames, actions = some_frames(2, 5), some_actions(MOUSE, 2, 5)
    embeds = model.encode(frames.flatten(0, 1)).view(2, 5, -1)
    with torch.no_grad():
        features, posterior, _ = model.cell(embeds, actions)
        alone = model.cell.infer_first(embeds[:, 0])
        observed = model.eval().start(embeds[:, :, None], actions[:, :4]).latents[:, 0]
    assert torch.equal(features[..., 32:], posterior.flatten(2))
    assert torch.allclose(observed, features[:, -1], atol=1e-5)
    assert torch.allclose(alone, features[:, 0], atol=1e-6)


def test_an_absolute_z_is_of_its_frame_alone():
    frames, actions = some_frames(2, 5), some_actions(MOUSE, 2, 5)
    for absolute in (False, True):
        model = rssm(absolute=absolute, sample_posterior=False).eval()
        embeds = model.encode(frames.flatten(0, 1)).view(2, 5, -1)
        with torch.no_grad():
            within = model.cell(embeds, actions).features[..., 32:]
            alone = model.cell.infer_first(embeds)[..., 32:]
            other = model.cell(embeds, -actions).features[..., 32:]
        assert torch.equal(within[:, 0], alone[:, 0])
        assert torch.equal(within, alone) is absolute and torch.equal(within, other) is absolute


@pytest.mark.parametrize("kept", ["expected", "likeliest"])
def test_a_residual_prior_predicts_a_change_of_z_and_at_first_none(kept: str):
    torch.manual_seed(0)
    config = replace(CONFIG, residual_prior=True, expect_posterior=kept == "expected")
    model = Rssm(replace(config, sample_posterior=False), (16, 24), MOUSE).eval()
    embeds, actions = torch.randn(3, 6, 20), some_actions(MOUSE, 3, 30)
    with torch.no_grad():
        _, posterior, prior = model.cell(embeds, actions[:, :6])
        start = model.start(embeds[:, :1, None], actions[:, :0])
        end = model.rollout(start, actions).latents[..., 32:]
        assert torch.allclose(prior[:, 1:], posterior[:, :-1], atol=2e-3)
        assert torch.allclose(prior[:, 0], torch.full_like(prior[:, 0], 1 / 6))  # of nothing
        assert torch.allclose(end, start.latents[..., 32:], atol=2e-2)  # 30 steps on
        for weight in model.cell.prior_head[2].parameters():
            torch.nn.init.normal_(weight)
        changed = model.cell(embeds, actions[:, :6]).prior
        assert not torch.allclose(changed[:, 1:], posterior[:, :-1], atol=0.1)


def test_what_comes_after_another_episode_begins_is_no_change_of_its_end():
    model = rssm(residual_prior=True).eval()
    embeds, actions = torch.randn(2, 6, 20), some_actions(MOUSE, 2, 6)
    is_first = torch.zeros(2, 6, dtype=torch.bool)
    is_first[:, 3] = True
    with torch.no_grad():
        whole, alone = model.cell(embeds, actions, is_first), model.cell(embeds[:, 3:], actions)
    assert torch.allclose(whole.prior[:, 3], alone.prior[:, 0], atol=1e-5)


@pytest.mark.parametrize("probs", [[0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])
def test_logits_are_those_that_the_probabilities_are_mixed_of(probs: list[float]):
    mixed = unimix(torch.tensor(probs))
    assert torch.allclose(unimix_probs(logits_of(mixed)), mixed, atol=0.01)
    assert logits_of(torch.tensor(probs)).isfinite().all()


@pytest.mark.parametrize("spec", [MOUSE, KEYS, PADS])
def test_the_action_is_read_from_the_frames_around_it(spec: ActionSpec):
    model = rssm(spec, absolute=True, inverse_weight=3.0).train()
    batch = a_batch(model)
    assert batch.actions is not None
    found = model.loss(batch)["inverse"]
    found.backward()
    assert all(w.grad is not None and w.grad.any() for w in model.encoder.parameters())
    assert found > 0
    z = torch.randn(3, 6, 24)
    changed = batch.actions.clone()
    changed[:, 2] = some_actions(spec, 3) if spec is MOUSE else (changed[:, 2] + 1) % spec.size
    is_first = torch.zeros(3, 6, dtype=torch.bool)
    is_first[:, 0] = True
    read = model.inverse.loss
    assert torch.allclose(read(z, batch.actions, is_first), read(z, batch.actions, None))
    assert not torch.equal(read(z, changed, is_first), read(z, batch.actions, is_first))
    is_first[:, 3] = True  # what action 2 leads to is another episode's
    assert torch.equal(read(z, changed, is_first), read(z, batch.actions, is_first))


def test_a_z_that_knows_the_action_teaches_nothing_by_it():
    with pytest.raises(ValueError, match="--inverse-weight 1.0 has no use .* add --absolute"):
        rssm(inverse_weight=1.0)


@pytest.mark.parametrize("name", ["frames", "patches", "codes"])
def test_first_frames_are_drawn_besides(name: str):
    model = MODELS[name]().train()
    batch = a_batch(model)
    without = model.loss(batch)
    assert "first_frames" not in without
    model.config = replace(model.config, first_frames=3)
    losses = model.loss(batch)
    losses["first_frames"].backward()
    assert losses["first_frames"].isfinite() and losses["first_frames"] > 0
    cell = model.cell
    assert cell.posterior_out.weight.grad.any() and cell.embed_proj.weight.grad.any()
    assert cell.stoch_in.linear.weight.grad is None or not cell.stoch_in.linear.weight.grad.any()


@pytest.mark.parametrize(
    ("count", "frames"), [(3, [0, 2, 4]), (4, [0, 1, 3, 4]), (9, [0, 1, 2, 3, 4, 5])]
)
def test_first_frames_are_those_evenly_apart(count: int, frames: list[int]):
    model, seen = rssm(sample_posterior=False, first_frames=count), []
    model.reconstruction_loss = lambda features, target, weight: seen.append(target)  # type: ignore[method-assign]
    model.first_frame_losses(torch.randn(2, 6, 20), torch.arange(6.0).expand(2, 6))
    assert seen[0][0].tolist() == frames


def test_the_squared_error_is_that_of_a_frame_on_the_mean():
    model, batch = rssm(sample_posterior=False), a_batch(rssm())
    assert batch.frames is not None
    features = torch.randn(3, 6, 56)
    wanted = model._patches(batch.frames.flatten(0, 1)).unflatten(0, (3, 6))
    drawn = model.decoder(features.flatten(0, 1)).unflatten(0, (3, 6))
    error = model.reconstruction_loss(features, wanted)
    assert torch.allclose(error, (drawn - wanted).square().sum((2, 3)).mean(), rtol=1e-5)


def test_errors_count_more_where_a_pixel_changes():
    """A dot that moves by a patch, in a frame of which all else stays."""
    frames = torch.zeros(1, 3, 3, 16, 24, dtype=torch.uint8)
    frames[0, 0, :, 0, 0] = frames[0, 1, :, 0, 8] = frames[0, 2, :, 0, 8] = 255
    model, plain = rssm(changed_weight=4.0), rssm()
    patches = model._patches(frames.flatten(0, 1)).unflatten(0, (1, 3))
    assert plain._weight(patches) is None
    weight = model._weight(patches)
    assert weight is not None
    counts = [6, 6, 0]  # where it was and where it is, three colors; it stays at the end
    assert [int((weight[0, t] == 2).sum()) for t in range(3)] == counts
    assert weight.unique().tolist() == [1, 2]
    features = torch.randn(1, 3, 56)
    drawn = model.decoder(features.flatten(0, 1)).unflatten(0, (1, 3))
    wanted = ((drawn - patches).square() * weight.square()).sum((2, 3)).mean()
    assert torch.allclose(model.reconstruction_loss(features, patches, weight), wanted, rtol=1e-5)


def test_a_config_that_was_written_before_has_none_of_them():
    old = to_plain(CONFIG)
    del old["first_frames"], old["changed_weight"], old["overshooting"]
    del old["absolute"], old["expect_posterior"], old["inverse_weight"]
    del old["residual_prior"], old["frameskip"]
    assert from_plain(RssmConfig, old) == CONFIG
