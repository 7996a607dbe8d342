"""Latents learnt from their own prediction."""

from __future__ import annotations

import pytest
import torch
from test_keypoints import squares
from torch import Tensor

from data.actions import ActionSpec
from models.build import build_tokenizer, describe
from models.latent import Latent, LatentConfig
from models.predictor import PredictorConfig
from models.transformer import TransformerConfig

PLACE = ActionSpec("continuous", ("row", "column"), (0.0, 0.0), (25.0, 25.0))
TINY = TransformerConfig(width=32, layers=1, heads=2, hidden=64, context=3)
SMALL = LatentConfig(
    (32, 32), 8, TINY, 8, PredictorConfig(TINY, skip=2, rewards=False), blocks=2, slices=64,
    channels=16, depth=1,
)  # fmt: skip


def clips(count: int) -> tuple[Tensor, Tensor]:
    """A square that is where the last action says: frames (B, 5, 3, 32, 32), actions (B, 5, 2)."""
    places = torch.randint(0, 26, (count, 6, 2))
    frames = squares(places[:, :5].flatten(0, 1)).unflatten(0, (count, 5))
    return frames, PLACE.normalize(places[:, 1:].float())


def test_frames_become_one_vector_and_a_picture() -> None:
    model = Latent(SMALL, PLACE).eval()
    assert model.clip == 5
    latents = model.encode(clips(3)[0][:, 0])
    assert latents.shape == (3, 1, 8)
    assert model.decode(latents).shape == (3, 3, 32, 32)


def test_the_picture_teaches_the_latents_nothing() -> None:
    model = Latent(SMALL, PLACE).train()
    model.loss(*clips(4))["reconstruction"].backward()
    apart = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert apart and all(name.startswith("look.") for name in apart)


def test_it_learns_what_can_be_foretold_and_does_not_collapse() -> None:
    torch.manual_seed(0)
    model = Latent(SMALL, PLACE).train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    history = []
    for _ in range(200):
        losses = model.loss(*clips(32))
        optimizer.zero_grad()
        (losses["prediction"] + losses["regularity"] + losses["reconstruction"]).backward()
        optimizer.step()
        history.append({k: float(v.detach()) for k, v in losses.items()})
    assert history[-1]["of_staying"] < 0.3
    assert history[-1]["rank"] > 2 and 0.3 < history[-1]["variance"] < 3
    frames, actions = clips(100)
    with torch.no_grad():
        model.eval()
        first, came = (model.encode(frames[:, i]) for i in (0, 2))
        state = model.predictor.rollout(
            model.predictor.start(first[:, None], actions[:, :0]), actions[:, :2]
        )
    apart = torch.cdist(state.latents[:, 0], came[:, 0])
    nearer = (apart < apart.diagonal()[:, None]).sum(1)
    assert nearer.median() < 15  # other frames that are nearer to what was foretold; by chance 50


def test_a_rest_is_refused_and_a_checkpoint_is_enough() -> None:
    with pytest.raises(ValueError, match="patches of 8"):
        LatentConfig((36, 32))
    model = Latent(SMALL, PLACE).eval()
    again = build_tokenizer(describe(model.config), PLACE).eval()
    again.load_state_dict(model.state_dict())
    frames = clips(2)[0][:, 0]
    assert torch.equal(again.encode(frames), model.encode(frames))
