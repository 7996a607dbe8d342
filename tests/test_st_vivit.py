"""ST-ViViT: what codes depend on, and what they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from data.batch import Batch
from models.layers.transformer import TransformerConfig
from models.tokenizers.st_vivit import StVivit, StVivitConfig

BLOCKS = TransformerConfig(dim=32, num_layers=1, num_heads=2, mlp_dim=64, context_frames=1)
PAST = replace(BLOCKS, context_frames=3)
CONFIG = StVivitConfig(image_size=(16, 24), encoder=BLOCKS, decoder=PAST)


def tokenizer(**changes: Any) -> StVivit:
    torch.manual_seed(0)
    model = StVivit(replace(CONFIG, **changes)).eval()
    torch.nn.init.normal_(model.decoder_out.weight)
    for name, weight in model.named_parameters():
        if name.endswith(("out.weight", "qkv.weight", "down.weight")):
            torch.nn.init.normal_(weight, std=0.3)
    return model


def some_frames(clips: int = 1, frames: int = 5) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (clips, frames, 3, 16, 24), dtype=torch.uint8)


def changed_codes(model: StVivit, frame: int = 2) -> Tensor:
    """Which codes, (T, P), change with the first patch of one frame."""
    frames = some_frames()
    other = frames.clone()
    other[0, frame, :, :8, :8] = 255 - other[0, frame, :, :8, :8]
    with torch.no_grad():
        different = model.encode_clip(frames) != model.encode_clip(other)
    return different[0].unflatten(-1, (-1, model.config.num_codebooks)).any(-1)


def test_static_codes_depend_on_their_own_patch_alone():
    assert changed_codes(tokenizer()).nonzero().tolist() == [[2, 0]]


def test_codes_that_see_the_past_see_no_future():
    seen = changed_codes(tokenizer(encoder=PAST))
    assert not seen[:2].any() and seen[2, 0] and seen[:, 1:].sum() == 0


def test_codes_that_see_the_frame_see_their_own_frame():
    seen = changed_codes(tokenizer(encoder_sees_frame=True))
    assert seen[2, 1:].any() and not seen[[0, 1, 3, 4]].any()


def test_a_frame_is_drawn_with_those_before_it_and_none_after():
    model = tokenizer()
    codes = model.encode_clip(some_frames())
    other = codes.clone()
    other[0, 2] = (other[0, 2] + 1) % model.latents.codebook_size
    with torch.no_grad():
        different = (model.decode_clip(codes) != model.decode_clip(other)).flatten(2).any(-1)[0]
    assert different.tolist() == [False, False, True, True, True]
    assert model.temporal_context == 3


@pytest.mark.parametrize("past", [False, True])
def test_the_past_behind_the_context_changes_nothing(past: bool):
    model = tokenizer(encoder=PAST if past else BLOCKS)
    frames = some_frames(2)
    with torch.no_grad():
        codes, short = model.encode_clip(frames), model.encode_clip(frames[:, 2:])
        assert torch.equal(codes[:, -1], short[:, -1])
        drawn, part = model.decode_clip(codes), model.decode_clip(codes[:, 2:])
    assert torch.equal(drawn[:, -1], part[:, -1])


def test_codebooks_tell_levels_apart_and_near_ones_are_near():
    """Codes are as far apart as their numbers are, in levels; each level is a vertex, so that a
    linear function of the vectors is largest there."""
    model = tokenizer(num_codebooks=2, levels=(4, 3))
    with torch.no_grad():
        numbers, codes = model._quantize(model._to_patches(some_frames()))
    assert model.codebooks.shape == (2, 12, 5) and codes.max() < 12
    assert model.latents.dim == 10 and model.latents.tokens_per_frame == codes.shape[-1] == 12
    ids = codes.unflatten(-1, (-1, 2))
    assert torch.allclose(model._implicit_codebook[ids].flatten(-2), numbers, atol=1e-6)
    book = model.codebooks[0]
    levels = torch.stack([x.unique(return_inverse=True)[1] for x in model._implicit_codebook.T], -1)
    apart = (levels[:, None] - levels).abs().sum(-1)
    assert torch.equal((book[:, None] - book).abs().sum(-1), apart.float())
    assert torch.equal((book @ (2 * book - 1).T).argmax(0), torch.arange(12))


def test_a_thing_has_the_same_codes_in_each_patch_whatever_passed_by():
    """Codes of a patch do not depend on its place, nor on what a few frames of the first batch
    showed there: those of what differs from the background."""
    model = tokenizer().train()
    frames = torch.full((1, 9, 3, 16, 24), 200, dtype=torch.uint8)
    frames[0, :4, :, :8, :8] = 10  # passes by in the first patch
    model.loss(Batch(frames=frames))
    model.after_step()
    thing = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    shown = torch.full((6, 3, 16, 24), 200, dtype=torch.uint8)
    for patch, image in enumerate(shown):
        row, column = 8 * (patch // 3), 8 * (patch % 3)
        image[:, row : row + 8, column : column + 8] = thing
    with torch.no_grad():
        codes = model.eval().encode(shown).view(6, 6, 2)
    assert len(codes[torch.arange(6), torch.arange(6)].unique(dim=0)) == 1
    assert len(codes.flatten(0, 1).unique(dim=0)) == 2


def test_before_training_it_draws_the_median_of_the_first_batch():
    torch.manual_seed(0)
    model = StVivit(CONFIG).train()
    frames = some_frames(3)
    model.loss(Batch(frames=frames))
    assert not model.capturable
    model.after_step()
    drawn = model.eval().decode(torch.zeros(1, 12, dtype=torch.long))
    median = frames.float().flatten(0, 1).median(0).values
    assert (drawn[0].float() - median).abs().max() <= 1
    assert model.capturable


def test_what_moves_weighs_as_much_as_is_asked_for_and_the_rest_as_before():
    frames = torch.zeros(1, 2, 3, 16, 24, dtype=torch.uint8)
    frames[:, 0, :, :4, :4] = 255  # of the first frame alone: a change in both
    weights = {}
    for weight in (1.0, 5.0):
        model = tokenizer(changed_weight=weight)
        found = torch.as_tensor(model._weight(model._to_patches(frames)))
        weights[weight] = found.expand(1, 2, 6, 192)
    assert (weights[1.0] == 1).all()
    heavy = weights[5.0] > weights[5.0].min()
    assert heavy.sum() == 2 * 3 * 16 and heavy[:, :, 0].sum() == heavy.sum()
    torch.testing.assert_close(weights[5.0].max(), 5 * weights[5.0].min())
    torch.testing.assert_close(weights[5.0].mean(), torch.tensor(1.0))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"patch_size": 7}, "not divisible into patches of 7"),
        ({"levels": (256, 256, 4)}, "make 262144 codes"),
        ({"levels": ()}, "make 1 codes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: Any, message: str):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)
