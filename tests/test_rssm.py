"""The RSSM as a sequence model and as dynamics: over frames, vectors and codes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from data.actions import ActionSpec, Factor
from data.batch import Batch
from models.dynamics.rssm import Rssm, RssmConfig
from models.dynamics.rssm_base import RssmBase
from models.dynamics.rssm_latents import RssmLatents, RssmLatentsConfig
from models.layers.categorical_groups import kl_balance, unimix
from models.layers.sampling import Sampling
from models.tokenizers.tokenizer import LatentSpec

MOUSE = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (512.0, 512.0))
KEYS = ActionSpec("discrete", ("left", "still", "right"))
PADS = ActionSpec("discrete", (), factors=(Factor("x", ("a", "b")), Factor("y", ("c", "d", "e"))))
SMALL: dict[str, Any] = {
    "deter_dim": 32, "num_groups": 4, "num_classes": 6, "hidden_dim": 24, "num_blocks": 4,
    "embed_dim": 20, "context_frames": 3, "clip_length": 6, "free_nats": 0.0,
}  # fmt: skip
CONFIG = RssmConfig(**SMALL, channels=8)
VECTORS = LatentSpec("continuous", (1, 1), 7)
PATCHES = LatentSpec("continuous", (2, 3), 5)
CODES = LatentSpec("discrete", (2, 2), 8, codebook_size=9, num_codebooks=2)


def rssm(actions: ActionSpec = MOUSE, **changes: Any) -> Rssm:
    torch.manual_seed(0)
    model = Rssm(replace(CONFIG, **changes), (16, 24), actions)
    shaken(model)
    return model


def shaken(model: RssmBase) -> None:
    """Move weights away from where they start at zero, so that outputs say something."""
    for weight in model.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)


def over(latents: LatentSpec, actions: ActionSpec = MOUSE) -> RssmLatents:
    torch.manual_seed(0)
    model = RssmLatents(RssmLatentsConfig(**SMALL, patch_dim=6), latents, actions)
    torch.nn.init.normal_(model.vectors.codebook)
    shaken(model)
    return model


def some_actions(spec: ActionSpec, *shape: int) -> Tensor:
    if spec.kind == "discrete":
        return torch.randint(0, spec.size, shape)
    return torch.rand(*shape, spec.size) * 2 - 1


def some_latents(spec: LatentSpec, *shape: int) -> Tensor:
    if spec.kind == "discrete":
        return torch.randint(0, spec.codebook_size, (*shape, spec.tokens_per_frame))
    return torch.randn(*shape, spec.num_patches, spec.dim)


def some_frames(*shape: int) -> Tensor:
    return torch.randint(0, 256, (*shape, 3, 16, 24), dtype=torch.uint8)


MODELS = {
    "frames": rssm, "keys": lambda: rssm(KEYS), "pads": lambda: rssm(PADS),
    "vectors": lambda: over(VECTORS), "patches": lambda: over(PATCHES, KEYS),
    "codes": lambda: over(CODES),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> RssmBase:
    return MODELS[request.param]().eval()


def a_batch(model: RssmBase, clips: int = 3, length: int = 6) -> Batch:
    torch.manual_seed(1)
    batch = Batch(
        actions=some_actions(model.actions, clips, length),
        rewards=torch.rand(clips, length),
        continues=torch.ones(clips, length),
    )
    if isinstance(model, Rssm):
        batch.frames = some_frames(clips, length)
    else:
        batch.latents = some_latents(model.latents, clips, length)
    return batch


# -- the sequence ------------------------------------------------------------------------------


def follow(model: Rssm, embeds: Tensor, actions: Tensor, is_first: Tensor | None = None) -> Any:
    torch.manual_seed(2)
    with torch.no_grad():
        return model.cell(embeds, actions, is_first)


def test_the_future_does_not_reach_the_past():
    model, embeds, actions = rssm(), torch.randn(2, 6, 20), some_actions(MOUSE, 2, 6)
    before = follow(model, embeds, actions)
    later, other = embeds.clone(), actions.clone()
    later[:, 4:] += 1
    other[:, 3:] *= -1  # the action that leads to frame 4
    after = follow(model, later, other)
    for one, two in zip(before, after, strict=True):
        assert torch.equal(one[:, :4], two[:, :4])
    assert not torch.equal(before.features[:, 4], after.features[:, 4])


def test_an_action_is_seen_by_the_prior_of_the_frame_that_it_leads_to():
    model, embeds, actions = rssm(), torch.randn(2, 6, 20), some_actions(MOUSE, 2, 6)
    other = actions.clone()
    other[:, 2] *= -1
    one, two = follow(model, embeds, actions).prior, follow(model, embeds, other).prior
    assert torch.equal(one[:, :3], two[:, :3]) and not torch.allclose(one[:, 3], two[:, 3])
    other[:, 5] *= -1  # leads out of the clip
    assert torch.equal(follow(model, embeds, other).prior, two)


def test_an_episode_that_begins_within_a_clip_is_as_one_that_begins_it():
    model, embeds, actions = rssm(), torch.randn(2, 6, 20), some_actions(MOUSE, 2, 6)
    is_first = torch.zeros(2, 6, dtype=torch.bool)
    is_first[0, 3] = True
    whole = follow(model, embeds, actions, is_first)
    alone = follow(model, embeds[:, 3:], actions[:, 3:])
    unmarked = follow(model, embeds, actions)
    assert torch.allclose(whole.posterior[0, 3], alone.posterior[0, 0], atol=1e-6)
    assert torch.allclose(whole.prior[0, 3], alone.prior[0, 0], atol=1e-6)
    assert not torch.allclose(unmarked.posterior[0, 3], alone.posterior[0, 0], atol=1e-3)
    assert torch.allclose(whole.posterior[1], unmarked.posterior[1], atol=1e-5)  # it goes on
    assert torch.allclose(whole.features[:, :3], unmarked.features[:, :3], atol=1e-5)


def test_the_loss_reads_where_episodes_begin():
    model = rssm().train()
    batch = a_batch(model)
    marked = replace(batch, extra={"is_first": torch.eye(6, dtype=torch.bool)[2].expand(3, 6)})
    found = []
    for given in (batch, marked):
        torch.manual_seed(0)
        found.append(float(model.loss(given)["kl"]))
    assert found[0] != found[1]


def test_training_follows_frames_as_a_world_does():
    """`forward` is `start`, but for the sampling of z."""
    model = rssm().eval()
    with torch.no_grad():
        model.cell.posterior_out.weight.mul_(1000)  # all but certain, but for the uniform share
        model.sampling = Sampling()
        embeds, actions = torch.randn(64, 3, 20), some_actions(MOUSE, 64, 3)
        state = model.start(embeds[:, :, None], actions[:, :2]).latents[:, 0]
        features = follow(model, embeds, actions).features[:, -1]
    same = torch.isclose(state, features, atol=1e-4).all(-1).float().mean()
    assert same > 0.7


def test_with_the_likeliest_z_training_follows_frames_exactly_as_a_world_does():
    model, embeds, actions = (
        rssm(sample_posterior=False),
        torch.randn(5, 4, 20),
        torch.rand(5, 4, 2),
    )
    with torch.no_grad():
        state = model.start(embeds[:, :, None], actions[:, :3]).latents[:, 0]
        features = follow(model, embeds, actions).features[:, -1]
    assert torch.allclose(state, features, atol=1e-5)


def test_the_likeliest_z_is_no_matter_of_chance_and_its_kl_is_that_of_a_code():
    """Of a certain posterior the KL is how unlikely the code is under the prior, but for unimix."""
    model = rssm(sample_posterior=False).train()
    embeds, actions = torch.randn(2, 6, 20), some_actions(MOUSE, 2, 6)
    one, two = (model.cell(embeds, actions) for _ in range(2))
    assert torch.equal(one.features, two.features)
    code = one.features[..., 32:].unflatten(-1, (4, 6))
    unlikely = -(code * one.prior.log()).sum((-1, -2))
    certain = kl_balance(code.clamp(min=1e-30), one.prior, 0.0)[2]
    assert torch.allclose(certain, unlikely, atol=1e-5)
    assert torch.allclose(one.posterior, unimix(code))
    one.posterior.sum().backward(retain_graph=True)
    (one.posterior * torch.randn_like(code)).sum().backward()
    weight = model.cell.posterior_out.weight
    assert weight.grad is not None and weight.grad.any()


# -- the contract ------------------------------------------------------------------------------


def test_observing_a_clip_frame_by_frame_is_starting_at_its_end(model: RssmBase):
    latents, actions = some_latents(model.latents, 3, 4), some_actions(model.actions, 3, 4)
    with torch.no_grad():
        state = model.start(latents[:, :1], actions[:, :0])
        for t in range(1, 4):
            state = model.observe(state, actions[:, t - 1], latents[:, t])
        whole = model.start(latents, actions[:, :3])
    assert torch.allclose(state.latents, whole.latents, atol=1e-5)


def test_a_state_is_all_that_is_remembered(model: RssmBase):
    latents, actions = some_latents(model.latents, 3, 4), some_actions(model.actions, 3, 4)
    with torch.no_grad():
        state = model.start(latents, actions[:, :3])
        again = model.from_state(state.latents)
        one, two = model.step(state, actions[:, 3]), model.step(again, actions[:, 3])
    assert torch.equal(one.latents, two.latents) and torch.equal(one.reward, two.reward)
    shape = (3, 1, model.state_spec.dim)
    assert state.latents.shape == shape and model.state_spec.grid == (1, 1)


def test_rows_do_not_know_each_other(model: RssmBase):
    latents, actions = some_latents(model.latents, 4, 2), some_actions(model.actions, 4, 2)
    with torch.no_grad():
        state = model.start(latents, actions[:, :1])
        both = model.step(state, actions[:, 1])
        row = model.step(state.select(torch.tensor([2])), actions[2:3, 1])
        assert torch.allclose(both.latents[2:3], row.latents, atol=1e-6)
        assert torch.allclose(both.reward[2:3], row.reward, atol=1e-5)
        assert model.readout(both).shape[0] == 4


def test_a_prediction_is_the_same_each_time_and_sampling_changes_it(model: RssmBase):
    latents, actions = some_latents(model.latents, 16, 2), some_actions(model.actions, 16, 2)
    with torch.no_grad():
        state = model.start(latents, actions[:, :1])
        one, two = (model.step(state, actions[:, 1]).latents for _ in range(2))
        assert torch.equal(one, two)
        model.sampling = Sampling(temperature=1.0)
        three, four = (model.step(state, actions[:, 1]).latents for _ in range(2))
    assert not torch.equal(three, four)
    deter_dim = model.config.deter_dim
    assert torch.equal(three[..., :deter_dim], one[..., :deter_dim])  # h is no matter of chance
    for z in (one[..., deter_dim:], three[..., deter_dim:]):
        assert torch.allclose(z.sum(-1), torch.full((16, 1), 4.0))
    assert set(three[..., deter_dim:].unique().tolist()) == {0, 1}


def test_a_prediction_is_the_mean_of_what_may_be_and_temperature_0_the_likeliest():
    model = rssm().eval()
    with torch.no_grad():
        state = model.from_state(torch.rand(1, 1, 56)).repeat(20_000)
        action = some_actions(MOUSE, 1).expand(20_000, 2)
        expected = model.step(state.select(torch.tensor([0])), action[:1]).latents
        model.sampling = Sampling(temperature=1.0)
        mean = model.step(state, action).latents.mean(0)
        model.sampling = Sampling()
        likeliest = model.step(state.select(torch.tensor([0])), action[:1]).latents
    assert torch.allclose(mean, expected[0], atol=0.02)
    z = expected[0, 0, 32:].view(4, 6)
    assert torch.equal(likeliest[0, 0, 32:].view(4, 6).argmax(-1), z.argmax(-1))
    assert set(likeliest[0, 0, 32:].tolist()) == {0, 1}


def test_a_rollout_is_its_steps_and_reads_the_reward_of_its_end(model: RssmBase):
    latents, actions = some_latents(model.latents, 3, 2), some_actions(model.actions, 3, 5)
    with torch.no_grad():
        state = model.start(latents, actions[:, :1])
        whole, stepped = model.rollout(state, actions[:, 1:]), state
        for t in range(1, 5):
            stepped = model.step(stepped, actions[:, t])
    for one, two in ((whole.latents, stepped.latents), (whole.reward, stepped.reward)):
        assert torch.allclose(one, two, atol=1e-6)


def test_a_readout_is_what_the_model_reads(model: RssmBase):
    if isinstance(model, Rssm):
        return
    latents = some_latents(model.latents, 3, 1)
    with torch.no_grad():
        drawn = model.readout(model.start(latents, some_actions(model.actions, 3, 0)))
    assert drawn.shape == latents[:, 0].shape and drawn.dtype == latents.dtype


def test_every_weight_learns(model: RssmBase):
    model.train()
    losses = model.loss(a_batch(model))
    total = sum((v for v in losses.values() if v.requires_grad), torch.zeros(()))
    total.backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still
    assert all(v.isfinite() for v in losses.values())


def test_untrained_heads_say_nothing():
    torch.manual_seed(0)
    model = Rssm(CONFIG, (16, 24), MOUSE).eval()
    with torch.no_grad():
        state = model.start(torch.randn(5, 1, 1, 20), some_actions(MOUSE, 5, 0))
        after = model.step(state, some_actions(MOUSE, 5))
    assert after.reward.abs().max() < 1e-3 and torch.equal(after.continues, torch.full((5,), 0.5))


def test_without_rewards_there_are_no_heads():
    model = rssm(rewards=False)
    losses = model.loss(a_batch(model))
    assert "reward" not in losses and "continue" not in losses and not model.has_rewards
    state = model.step(model.from_state(torch.zeros(2, 1, 56)), some_actions(MOUSE, 2))
    assert torch.equal(state.reward, torch.zeros(2)) and torch.equal(state.continues, torch.ones(2))


def test_data_without_ends_or_rewards_trains_the_rest():
    model = rssm()
    losses = model.loss(replace(a_batch(model), rewards=None, continues=None))
    assert losses.keys() == {"reconstruction", "dynamics_kl", "representation_kl", "kl"}


def test_a_later_reward_has_a_gradient_for_every_action():
    model = rssm().eval()
    actions = some_actions(MOUSE, 2, 5).requires_grad_()
    state = model.rollout(model.from_state(torch.rand(2, 1, 56)), actions)
    (grad,) = torch.autograd.grad(state.reward.sum(), actions)
    assert (grad.abs().sum((0, 2)) > 0).all()
