"""The latent action model: codes are of their own pair of frames, and a collapse is said."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.dynamics.latent_actions import (
    SETTLED_STEPS,
    LatentActionConfig,
    LatentActionModel,
    first_moments,
    shortened,
)

CONFIG = LatentActionConfig(
    num_actions=6, dim=2, downsample=1, channels=16, num_layers=2, vq_start_step=3
)


def a_model(**changes: Any) -> LatentActionModel:
    torch.manual_seed(0)
    return LatentActionModel(replace(CONFIG, **changes), (16, 16))


def some_frames(clips: int = 2, frames: int = 5, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return torch.randint(0, 256, (clips, frames, 3, 16, 16), dtype=torch.uint8)


def moving_dots(clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs of frames, (B, 2, 3, 16, 16), in which a dot moves, and which of four ways."""
    rng = torch.Generator().manual_seed(seed)
    place = torch.randint(3, 12, (clips, 2), generator=rng)
    way = torch.randint(0, 4, (clips,), generator=rng)
    step = torch.tensor([[0, 2], [0, -2], [2, 0], [-2, 0]])[way]
    frames = torch.full((clips, 2, 3, 16, 16), 255, dtype=torch.uint8)
    for t, at in enumerate((place, place + step)):
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
            frames[torch.arange(clips), t, :, at[:, 0] + dy, at[:, 1] + dx] = 0
    return frames, way


def dots_beside_blocks(clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clips (B, 4, 3, 24, 24) of a blue dot that moves in each step, and of a gray block of nine
    times its size that moves in some; and how the dot moved, (B, 3, 2) as x and y."""
    rng = torch.Generator().manual_seed(seed)
    frames = torch.full((clips, 4, 3, 24, 24), 255, dtype=torch.uint8)
    dot = torch.randint(2, 9, (clips, 2), generator=rng)
    block = torch.randint(12, 15, (clips, 2), generator=rng)
    moved = torch.randint(-1, 2, (clips, 3, 2), generator=rng)
    pushed = torch.randint(-1, 2, (clips, 3, 2), generator=rng)
    pushed *= torch.rand(clips, 3, 1, generator=rng) < 0.3
    for clip in range(clips):
        for t in range(4):
            for at, size, color in ((block, 6, (119, 136, 153)), (dot, 2, (65, 105, 225))):
                way = (moved if at is dot else pushed)[clip, :t].sum(0)
                x, y = (at[clip] + way).clamp(0, 24 - size).tolist()
                shade = torch.tensor(color, dtype=torch.uint8)[:, None, None]
                frames[clip, t, :, y : y + size, x : x + size] = shade
    return frames, moved


def trained(model: LatentActionModel, steps: int) -> dict[str, float]:
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.0)
    losses: dict[str, Tensor] = {}
    for step in range(steps):
        losses, _ = model.train().loss(moving_dots(64, step)[0])
        optimizer.zero_grad()
        sum((v for v in losses.values() if v.requires_grad), torch.zeros(())).backward()
        optimizer.step()
        with torch.no_grad():
            model.after_step()
    return {name: float(value.detach()) for name, value in losses.items()}


@pytest.mark.parametrize("frame", [0, 1, 2, 3, 4])
def test_an_action_is_of_its_own_two_frames_and_of_no_other(frame: int):
    """The action between t and t + 1 changes with frame t + 1, and not with frame t + 2."""
    model, frames = a_model().eval(), some_frames()
    other = frames.clone()
    other[:, frame] = some_frames(seed=2)[:, frame]
    with torch.no_grad():
        different = (model.vectors(frames) - model.vectors(other)).abs().amax((0, 2)) > 1e-4
    assert different.nonzero().flatten().tolist() == [t for t in (frame - 1, frame) if 0 <= t < 4]


def test_an_action_does_the_same_wherever_it_is_done():
    """Neither encoder nor decoder knows places: a pair of frames that is shifted has the same
    action, and the same change, shifted."""
    model, pairs = a_model().eval(), moving_dots(16, seed=0)[0]
    torch.nn.init.normal_(model.decoder.out.weight)
    wide = torch.full((16, 2, 3, 48, 48), 255, dtype=torch.uint8)
    here, there = wide.clone(), wide.clone()
    here[..., 12:28, 12:28], there[..., 16:32, 20:36] = pairs, pairs
    with torch.no_grad():
        actions = model.vectors(here)
        assert (actions[0] - actions[1]).abs().max() > 1e-3
        assert torch.allclose(model.vectors(there), actions, atol=1e-4)
        drawn = [model.predict(model._blur(x)[:, 0], actions[:, 0]) for x in (here, there)]
    inside = slice(16, 40)  # where no layer sees the edge
    moved = drawn[0].roll((4, 8), (2, 3))
    assert torch.allclose(moved[..., inside, inside], drawn[1][..., inside, inside], atol=1e-4)


def a_square(x: int, y: int, color: float) -> Tensor:
    frame = torch.ones(3, 24, 24)
    frame[:, y : y + 3, x : x + 3] = color
    return frame


@pytest.mark.parametrize("way", [(1, 0), (0, -2), (5, 0), (9, 7)])
@pytest.mark.parametrize("start", [(2, 3), (11, 10)])
def test_first_moments_are_the_way_of_what_moved_however_far_it_is(
    way: tuple[int, int], start: tuple[int, int]
):
    """Nine pixels that differ by 0.6 from the ground, times the way."""
    before = a_square(*start, 0.4)
    after = a_square(start[0] + way[0], start[1] + way[1], 0.4)
    found = first_moments((after - before)[None])[0]
    expected = torch.tensor(way).float()[:, None] * 9 * -0.6
    torch.testing.assert_close(found, expected.expand(2, 3), atol=1e-4, rtol=1e-4)


def test_what_comes_or_is_covered_does_not_count_as_moved():
    before, none = a_square(17, 4, 0.4), torch.ones(3, 24, 24)
    for change in (none - before, before - none, none - none):
        assert first_moments(change[None]).abs().max() < 1e-4


def test_the_motion_alone_is_that_of_what_always_moves_and_not_of_what_moves_most():
    model = LatentActionModel(replace(CONFIG, motion_alone=True, vq_start_step=4), (24, 24))
    for step in range(6):
        model.train().loss(dots_beside_blocks(64, step)[0])
        with torch.no_grad():
            model.after_step()
    frames, moved = dots_beside_blocks(200, seed=10**6)
    with torch.no_grad():
        numbers = model.eval().vectors(frames).flatten(0, 1)
    true = moved.flatten(0, 1).float()
    true, numbers = true - true.mean(0), numbers - numbers.mean(0)
    residual = true - numbers @ torch.linalg.lstsq(numbers, true).solution
    assert 1 - residual.square().sum() / true.square().sum() > 0.9
    assert not list(model.encoder.parameters())


@pytest.mark.parametrize("start", [0, 1, 2, 8])
def test_things_are_told_apart_by_changes_however_early_codes_begin(start: int):
    """By those of the second step at the earliest, in the units of all that follow."""
    model = LatentActionModel(replace(CONFIG, motion_alone=True, vq_start_step=start), (24, 24))
    for step in range(max(2, start // 2)):
        assert not model.encoder.things.known
        model.train().loss(dots_beside_blocks(8, step)[0])
        with torch.no_grad():
            model.after_step()
    things = model.encoder.things
    assert things.known and int(things.count) == 8 * 3 * (max(2, start // 2) - 1)
    assert not torch.equal(things.matrix, torch.eye(3))


def test_the_motion_alone_has_two_numbers():
    with pytest.raises(ValueError, match="latent_actions.dim is 3, and motion_alone tells 2"):
        replace(CONFIG, motion_alone=True, dim=3)


@pytest.fixture(scope="module")
def learned() -> tuple[LatentActionModel, dict[str, float]]:
    model = a_model(vq_start_step=60)
    last = trained(model, 150)
    return model.eval(), last


def test_directions_become_codes_of_their_own(learned: tuple[LatentActionModel, dict[str, float]]):
    """Without labels, the four ways that a dot moves are told apart, in places never seen."""
    model, last = learned
    frames, way = moving_dots(400, seed=10**6)
    with torch.no_grad():
        codes = model.codes(frames)[:, 0]
    agreement = sum(int(torch.bincount(way[codes == c], minlength=4).max()) for c in codes.unique())
    assert agreement / len(way) > 0.8
    assert model.encoder.things.full  # though the largest change is the same in each pair
    assert last["action_error"] < 0.2 and last["action_gain"] > 0.5
    assert model.advise(last) == []


def test_a_code_changes_with_the_frame_it_leads_to_and_not_with_the_one_after(
    learned: tuple[LatentActionModel, dict[str, float]],
):
    """The commonest bug: an action that is shifted by a step, and tells the past alone."""
    model = learned[0]
    pairs = moving_dots(64, seed=10**6)[0]
    frames = torch.cat([pairs, some_frames(64, 1)], dim=1)
    third, second = frames.clone(), frames.clone()
    third[:, 2], second[:, 1] = 255 - frames[:, 2], pairs[:, 1].flip(-1)
    with torch.no_grad():
        codes = model.codes(frames)[:, 0]
        assert torch.equal(model.codes(third)[:, 0], codes)
        assert (model.codes(second)[:, 0] != codes).float().mean() > 0.3


def test_codes_in_a_row_lead_where_their_actions_do():
    """What a code lacks is made up for by the next ones: the sums stay within a code's own error,
    while those of the nearest codes go on drifting."""
    long = math.sinh(2 * 0.4) / 2  # of a vector that is 0.4 long when it has been shortened
    actions = torch.tensor([[0.4, 0.0]]).repeat(20, 1)[None]
    off = {}
    for carry in (0.0, 1.0):
        model = a_model(carry=carry, num_actions=4).eval()
        codes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        model.quantizer._codebook.embed.copy_(codes[None])  # type: ignore[union-attr, operator]
        model.vectors = lambda frames: actions * long / 0.4  # type: ignore[method-assign]
        found = model.codes(some_frames(1, 21))
        off[carry] = (model.codebook[found[0]].sum(0) - actions[0].sum(0)).norm()
    assert off[0.0] == pytest.approx(8.0, abs=1e-4) and off[1.0] <= 0.5


@pytest.mark.parametrize("linear_length", [0.5, 1.0])
def test_long_actions_are_told_apart_by_ratios_and_short_ones_by_differences(linear_length):
    lengths = linear_length * torch.tensor([0.01, 0.02, 100.0, 200.0])
    directed = torch.stack([lengths * 0.6, lengths * 0.8], dim=1)
    short = shortened(directed, linear_length)
    assert torch.allclose(short[:, 1] / short[:, 0], torch.tensor(4 / 3))
    found = short.norm(dim=1) / linear_length
    assert found[1] - found[0] == pytest.approx(0.01, rel=0.02)
    assert found[3] - found[2] == pytest.approx(math.log(2), rel=0.01)


def test_a_collapse_and_a_deaf_decoder_are_said_once_and_not_before_codes_have_settled():
    model = a_model()
    bad = {"action_perplexity": 1.0, "action_gain": 0.001}
    assert model.advise(bad) == []
    model.trained_steps += CONFIG.vq_start_step + SETTLED_STEPS
    lines = model.advise(bad)
    assert len(lines) == 2 and "1.0 of 6 codes" in lines[0] and "deaf" in lines[1]
    assert all("--model.latent-actions." in line for line in lines)
    assert not any("motion-alone" in line for line in lines)
    assert model.advise(bad) == []


def test_a_deaf_decoder_of_the_motion_alone_is_told_of_the_convolutions():
    model = a_model(motion_alone=True)
    model.trained_steps += CONFIG.vq_start_step + SETTLED_STEPS
    (line,) = model.advise({"action_perplexity": 6.0, "action_gain": 0.001})
    assert "where the whole picture moves, --model.latent-actions.no-motion-alone" in line


def test_micro_batches_move_the_codebook_once_and_evaluation_never():
    model = a_model(vq_start_step=0)
    frames = some_frames(8)
    for _ in range(4):  # units of frames, the things, units of vectors, then the codes
        assert not model.capturable
        for part in frames.split(4):
            model.train().loss(part)
        with torch.no_grad():
            model.after_step()
    assert model.capturable and len(model.codebook.unique(dim=0)) > 1
    before = model.codebook.clone()
    model.eval().loss(frames)
    model.after_step()
    assert torch.equal(model.codebook, before)


def test_patches_that_do_not_tile_a_frame_are_refused():
    with pytest.raises(ValueError, match="not divisible into patches of 7"):
        a_model(downsample=7)
