"""The vision transformer over any of a frame's patches, and masks over these."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.layers.block_masks import draw_blocks
from models.layers.packed_vit import PackedVitLayer, can_pack, pack_vit_layers
from models.layers.vit import (
    PatchEncoder,
    VitConfig,
    VitLayers,
    embed_positions,
    patch_positions,
)

CONFIG = VitConfig(dim=24, num_layers=2, num_heads=2)


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-5), ("bf16", 0.02)])
def test_packed_layers_compute_the_same_in_any_batch(precision, most):
    if not can_pack(precision):
        pytest.skip(f"PyTorch without oneDNN, or a CPU without {precision}")
    torch.manual_seed(0)
    layers = VitLayers(CONFIG).eval().requires_grad_(False)
    tokens = torch.randn(5, 16, 24)
    expected = layers(tokens)
    pack_vit_layers(layers, precision)
    assert all(isinstance(layer, PackedVitLayer) for layer in layers.layers)
    with torch.inference_mode():
        found = torch.cat([layers(tokens[:1]), layers(tokens[1:])])
    assert found.dtype == torch.float32
    assert (found - expected).norm() < most * expected.norm()
    assert not torch.allclose(found[0], found[1], atol=0.1)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_layers_stay_where_a_cpu_does_not_multiply_in_the_precision(precision, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported", lambda: False)
    layers = VitLayers(CONFIG).eval().requires_grad_(False)
    pack_vit_layers(layers, precision)
    assert not any(isinstance(layer, PackedVitLayer) for layer in layers.layers)


def test_a_patch_that_is_left_out_is_not_seen():
    torch.manual_seed(0)
    encoder = PatchEncoder(CONFIG, (32, 32), 8)
    frames = torch.randn(2, 3, 32, 32)
    keep = torch.tensor([[0, 5, 6], [1, 2, 15]])
    before = encoder(frames, keep)
    changed = frames.clone()
    changed[0, :, :8, 8:16] += 1.0  # patch 1
    after = encoder(changed, keep)
    assert torch.equal(before[0], after[0])
    changed[1, :, :8, 8:16] += 1.0
    assert not torch.allclose(before[1], encoder(changed, keep)[1])


def test_all_patches_in_order_are_the_frame():
    encoder = PatchEncoder(CONFIG, (32, 32), 8)
    frames = torch.randn(2, 3, 32, 32)
    assert torch.allclose(encoder(frames), encoder(frames, torch.arange(16).expand(2, -1)))


def test_the_order_of_tokens_does_not_matter():
    encoder = PatchEncoder(CONFIG, (32, 32), 8)
    frames = torch.randn(1, 3, 32, 32)
    some, turned = torch.tensor([[3, 8, 1]]), torch.tensor([[1, 3, 8]])
    assert torch.allclose(encoder(frames, some)[:, [2, 0, 1]], encoder(frames, turned), atol=1e-5)


def test_positions_are_told_apart_and_near_ones_are_alike():
    embedded = embed_positions(patch_positions(8, 8), 32, 8)
    distance = torch.cdist(embedded, embedded)
    assert (distance + torch.eye(64) * 9 > 0.5).all()
    assert distance[0, 1] < distance[0, 7]


@pytest.mark.parametrize("grid", [(8, 8), (4, 4), (14, 14), (6, 10)])
def test_what_is_predicted_is_not_seen(grid):
    torch.manual_seed(0)
    patches = grid[0] * grid[1]
    counts = int(0.4 * patches), int(0.4 * patches)
    visible, targets = draw_blocks(64, grid, *counts, torch.device("cpu"))
    assert visible.shape == (64, counts[0]) and targets.shape == (64, counts[1])
    for seen, wanted in zip(visible.tolist(), targets.tolist(), strict=True):
        assert len({*seen, *wanted}) == sum(counts)


def test_masks_are_blocks():
    """Most neighbors of a predicted patch are predicted too."""
    torch.manual_seed(0)
    _, targets = draw_blocks(64, (14, 14), 80, 80, torch.device("cpu"))
    mask = torch.zeros(64, 196).scatter(1, targets, 1).view(64, 14, 14)
    pairs = mask[:, :, :-1] * mask[:, :, 1:]
    alone = (80 / 196) ** 2  # what patches drawn one by one would have
    assert pairs.mean() > 1.5 * alone


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="--dim 26 is not divisible by 4"):
        VitConfig(dim=26, num_heads=2)


@pytest.mark.parametrize("train", [True, False])
def test_a_layer_is_pytorchs_with_its_weights_outputs_and_gradients(train: bool):
    """Without a gradient PyTorch takes another path in evaluation, and ours another on a CPU."""
    torch.manual_seed(0)
    ours = VitLayers(CONFIG).layers[0].train(train)
    theirs = nn.TransformerEncoderLayer(
        24, 2, 96, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).train(train)
    theirs.load_state_dict(ours.state_dict())
    found = []
    for layer in (ours, theirs):
        tokens = torch.randn(3, 5, 24, generator=torch.manual_seed(1)).requires_grad_()
        out = layer(tokens)
        out.square().sum().backward()
        with torch.no_grad():
            found.append([out, layer(tokens), tokens.grad, *(p.grad for p in layer.parameters())])
    for our, their in zip(*found, strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=1e-4)
