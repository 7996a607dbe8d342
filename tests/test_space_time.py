"""The ST-transformer: what each token sees, and its cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.layers.space_time import FrameCache, SpaceTimeTransformer, grid_positions
from models.layers.transformer import TransformerConfig

CONFIG = TransformerConfig(dim=16, num_layers=1, num_heads=2, mlp_dim=32, context_frames=3)
GRID = (2, 3)


def a_model(over_space: bool = True, **changes: int | bool) -> SpaceTimeTransformer:
    torch.manual_seed(0)
    model = SpaceTimeTransformer(replace(CONFIG, **changes), grid_positions(GRID), over_space)
    for weight in model.parameters():  # branches start small, and then hardly show
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def changed(model: SpaceTimeTransformer, frame: int, place: int, frames: int = 6) -> Tensor:
    """Which outputs, (T, S), change with the input of one token."""
    x = torch.randn(1, frames, 6, 16)
    other = x.clone()
    other[0, frame, place] += 1
    with torch.no_grad():
        return (model(x)[0] - model(other)[0]).abs().amax(-1)[0] > 1e-6


def test_the_future_does_not_reach_the_past():
    for layers in (1, 3):
        seen = changed(a_model(num_layers=layers), frame=3, place=2)
        assert not seen[:3].any() and seen[3:].any(1)[:3].all()


def test_a_frame_is_seen_as_far_as_the_context_goes_in_each_block():
    for layers in (1, 2):
        model = a_model(num_layers=layers)
        seen = changed(model, frame=0, place=2, frames=7).any(1)
        assert seen.sum() == model.temporal_context == 1 + 2 * layers


def test_tokens_of_a_frame_see_each_other():
    assert changed(a_model(), frame=3, place=2)[3].all()


def test_time_is_seen_at_ones_own_place_and_space_in_ones_own_frame():
    """Without attention over space nothing reaches another place, without context no other
    frame."""
    alone = changed(a_model(over_space=False, num_layers=3), frame=2, place=4)
    assert alone[2:, 4].all() and alone[:, [0, 1, 2, 3, 5]].sum() == 0
    still = changed(a_model(context_frames=1, num_layers=3), frame=2, place=4)
    assert still[2].all() and still.sum() == 6


@pytest.mark.parametrize("layers", [1, 3])
def test_frames_one_by_one_equal_frames_together(layers: int):
    """A cache of the C - 1 frames before is all that a frame needs."""
    model = a_model(num_layers=layers)
    x = torch.randn(2, 8, 6, 16)
    with torch.no_grad():
        together, _ = model(x)
        out, cache = model(x[:, :2])
        parts = [out]
        for frame in x[:, 2:].split(1, dim=1):
            out, cache = model(frame, cache.between(-2))
            parts.append(out)
    assert torch.allclose(torch.cat(parts, dim=1), together, atol=1e-5)


def test_windows_of_a_cache_are_the_caches_of_each_frame():
    model = a_model(num_layers=2)
    x = torch.randn(2, 5, 6, 16)
    with torch.no_grad():
        together, cache = model(x)
        windows: FrameCache = cache.windows(2)  # of frames 0 1, 1 2, 2 3, 3 4
        behind = x[:, 2:].flatten(0, 1)[:, None]
        as_rows = windows.select(torch.tensor([0, 1, 2, 4, 5, 6]))
        out, _ = model(behind, as_rows)
    assert torch.allclose(out[:, 0].view(2, 3, 6, 16), together[:, 2:], atol=1e-5)


def test_activation_checkpointing_changes_no_gradient():
    x, found = torch.randn(2, 4, 6, 16), []
    for flag in (False, True):
        model = a_model(num_layers=2, activation_checkpointing=flag).train()
        model(x)[0].square().mean().backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*found, strict=True))
