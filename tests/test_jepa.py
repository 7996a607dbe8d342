"""Latents learned by predicting them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_keypoints import squares
from torch import Tensor, nn

from data.actions import ActionSpec
from data.batch import Batch
from models.dynamics.predictor import PredictorConfig
from models.layers.conv_encoder import ConvEncoder, pool
from models.layers.transformer import TransformerConfig
from models.registry import DataSpec, build_tokenizer, describe
from models.tokenizers.jepa import Jepa, JepaConfig

PLACE = ActionSpec("continuous", ("row", "column"), (0.0, 0.0), (25.0, 25.0))
TINY = TransformerConfig(dim=32, num_layers=1, num_heads=2, mlp_dim=64, context_frames=3)
SMALL = JepaConfig(
    (32, 32), 8, TINY, proj_hidden=64, latent_dim=8,
    predictor=PredictorConfig(transformer=TINY, frameskip=2, rewards=False), num_action_blocks=2,
    num_slices=64, channels=16, num_res_blocks=1,
)  # fmt: skip
WIDE = replace(SMALL, conv_filters=16)
BOTH = pytest.mark.parametrize("config", [SMALL, WIDE], ids=["vit", "conv"])


def clips(count: int) -> Batch:
    """A square at the last action's position: frames (B, 5, 3, 32, 32), actions (B, 5, 2)."""
    places = torch.randint(0, 26, (count, 6, 2))
    frames = squares(places[:, :5].flatten(0, 1)).unflatten(0, (count, 5))
    return Batch(frames=frames, actions=PLACE.normalize(places[:, 1:].float()))


@BOTH
def test_frames_become_one_vector_and_frames_again(config: JepaConfig) -> None:
    model = Jepa(config, PLACE).eval()
    assert model.clip_length == 5
    latents = model.encode(clips(3).require("frames")[0][:, 0])
    assert latents.shape == (3, 1, 8)
    assert model.decode(latents).shape == (3, 3, 32, 32)


@BOTH
def test_the_decoder_has_no_gradient_to_the_latents(config: JepaConfig) -> None:
    model = Jepa(config, PLACE).train()
    model.loss(clips(4))["reconstruction"].backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved and all(name.startswith("decoder.") for name in moved)


def gradient(module: nn.Module, loss: Tensor) -> Tensor:
    module.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def test_the_traced_loss_has_the_same_gradient() -> None:
    torch.manual_seed(0)
    # without SIGReg, whose random directions differ when compiled
    model = Jepa(replace(WIDE, sigreg_weight=0.0), PLACE).train()
    batch, found = clips(8), []
    torch.compiler.reset()
    for loss in (model.loss, torch.compile(model.loss, backend="aot_eager")):
        total = sum((v for v in loss(batch).values() if v.requires_grad), torch.zeros(()))
        found.append(gradient(model, total))
    torch.compiler.reset()
    assert (found[0] - found[1]).norm() < 1e-3 * found[0].norm()


def test_filters_that_are_pooled_in_generated_code_have_the_same_gradient() -> None:
    """Most of a filter's values are equal, zero."""
    torch.manual_seed(0)
    encoder = ConvEncoder(8, 8).train()

    def pooled(frames: Tensor) -> Tensor:
        return encoder.norm(pool(encoder.conv(frames)))

    frames = (torch.rand(8, 3, 32, 32) > 0.97).float()
    frames = frames.contiguous(memory_format=torch.channels_last)
    up = torch.linspace(-1, 2, 8 * 24).view(8, 24)
    torch.compiler.reset()
    one, other = (
        gradient(encoder, (function(frames) * up).sum())
        for function in (pooled, torch.compile(pooled))
    )
    torch.compiler.reset()
    assert (one - other).norm() < 1e-3 * one.norm()


@BOTH
def test_it_learns_to_predict_and_does_not_collapse(config: JepaConfig) -> None:
    torch.manual_seed(0)
    model = Jepa(config, PLACE).train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    history = []
    for _ in range(120):
        losses = model.loss(clips(32))
        optimizer.zero_grad()
        (losses["prediction"] + losses["sigreg"] + losses["reconstruction"]).backward()
        optimizer.step()
        history.append({k: float(v.detach()) for k, v in losses.items()})
    assert history[-1]["relative_error"] < 0.3
    assert history[-1]["effective_rank"] > 2 and 0.3 < history[-1]["variance"] < 3
    frames, actions = clips(100).require("frames", "actions")
    with torch.no_grad():
        model.eval()
        first, came = (model.encode(frames[:, i]) for i in (0, 2))
        predicted = model.predict(first[:, None], actions[:, None, :2])
    apart = torch.cdist(predicted[:, 0, 0], came[:, 0])
    nearer = (apart < apart.diagonal()[:, None]).sum(1)
    assert nearer.median() < 15  # other frames nearer to the prediction; by chance 50


@BOTH
def test_latents_have_unit_variance_before_training(config: JepaConfig) -> None:
    model = Jepa(config, PLACE).train()
    batch = clips(32)
    frames, actions = batch.require("frames", "actions")
    assert float(model.loss(batch)["variance"]) == pytest.approx(1, abs=0.05)
    latents = model.encode(frames[:, 0])[:, None]
    first_guess = model.predict(latents, actions[:, None, :2])
    assert first_guess.square().mean() < 0.5  # predicting no change would give 1


@BOTH
def test_a_frames_latent_does_not_depend_on_its_batch_in_evaluation(config: JepaConfig) -> None:
    model = Jepa(config, PLACE).train()
    frames = clips(8).require("frames")[0][:, 0]
    model.encode(frames)
    model.eval()
    assert torch.allclose(model.encode(frames)[:1], model.encode(frames[:1]), atol=1e-5)


@BOTH
def test_an_indivisible_image_size_is_refused_and_a_checkpoint_rebuilds_it(
    config: JepaConfig,
) -> None:
    with pytest.raises(ValueError, match="not divisible by --patch-size 8"):
        JepaConfig((36, 32))
    JepaConfig((36, 32), conv_filters=16)
    model = Jepa(config, PLACE).eval()
    again = build_tokenizer(describe(model.config), DataSpec((32, 32), PLACE)).eval()
    again.load_state_dict(model.state_dict())
    frames = clips(2).require("frames")[0][:, 0]
    assert torch.equal(again.encode(frames), model.encode(frames))
