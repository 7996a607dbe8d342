"""Several actions as one of an RSSM: how clips are cut for it, and that a world steps within them
as it was trained to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_rssm import KEYS, MOUSE, PADS, a_batch, rssm, some_actions, some_latents

from data.actions import ActionSpec
from data.batch import Batch
from models.dynamics.action_blocks import ActionBlocks
from models.dynamics.rssm import Rssm

SPECS = pytest.mark.parametrize("spec", [MOUSE, KEYS, PADS])
FIVE: dict[str, Any] = {"frameskip": 5, "clip_length": 11}


def model_of(spec: ActionSpec = MOUSE, **changes: Any) -> Rssm:
    return rssm(spec, **(FIVE | changes)).eval()


def blocks_of(spec: ActionSpec) -> ActionBlocks:
    torch.manual_seed(0)
    return ActionBlocks(spec, 5, 8)


@SPECS
def test_a_block_is_its_actions_in_their_places(spec: ActionSpec):
    blocks, actions = blocks_of(spec), some_actions(spec, 4, 5)
    assert blocks.embedding is not None
    for count in range(1, 6):
        packed = blocks.pack(actions[:, :count])
        wanted = blocks.embedding(actions, torch.full((4,), count))
        assert packed.shape[:2] == (4, 5) and torch.allclose(blocks(packed), wanted)
        assert torch.equal(blocks.last(packed), actions[:, count - 1])


@SPECS
def test_clips_are_cut_into_blocks_whose_last_has_any_number_of_actions(spec: ActionSpec):
    blocks, actions = blocks_of(spec), some_actions(spec, 64, 14)
    batch = Batch(actions=actions, rewards=torch.arange(14.0).expand(64, 14))
    spaced = blocks.spaced(batch)
    assert spaced.rewards is not None and spaced.actions is not None
    assert spaced.rewards[:, :2].unique(dim=0).tolist() == [[0, 5]]
    assert spaced.rewards[:, 2].unique().tolist() == [6, 7, 8, 9, 10]
    for row, end in enumerate(spaced.rewards[:, 2].int().tolist()):
        wanted = blocks.pack(actions[row, :5][None]), blocks.pack(actions[row, 5:end][None])
        assert torch.equal(spaced.actions[row, :2], torch.cat(wanted))
    assert spaced.actions.shape[1] == 3  # and one that leads out of the clip, which nothing reads


def test_a_frame_begins_an_episode_where_one_since_the_frame_before_does():
    is_first = torch.zeros(4, 11, dtype=torch.bool)
    for row, begins in enumerate([3, 5, 6]):
        is_first[row, begins] = True
    batch = Batch(actions=some_actions(MOUSE, 4, 11), extra={"is_first": is_first})
    found = blocks_of(MOUSE).spaced(batch).extra["is_first"].int().tolist()
    assert found == [[0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


@SPECS
def test_a_rollout_is_its_steps_also_within_blocks(spec: ActionSpec):
    model = model_of(spec)
    frames, actions = some_latents(model.latents, 3, 6), some_actions(spec, 3, 13)
    with torch.no_grad():
        state = stepped = model.start(frames, actions[:, :5])
        for t in range(5, 13):
            stepped = model.step(stepped, actions[:, t])
        whole = model.rollout(state, actions[:, 5:])
        parts = model.rollout(model.rollout(state, actions[:, 5:8]), actions[:, 8:])
        row = model.rollout(state, actions[:, 5:8]).select(torch.tensor([2]))
        row = model.rollout(row, actions[2:, 8:])
    for one in (stepped, parts):
        assert torch.allclose(one.latents, whole.latents, atol=1e-6)
        assert torch.allclose(one.reward, whole.reward, atol=1e-6)
    assert torch.allclose(row.latents, whole.latents[2:], atol=1e-6)


@SPECS
def test_a_world_steps_within_blocks_as_it_is_trained_to(spec: ActionSpec):
    """The prior of a last block of three actions is z after three steps."""
    model = model_of(spec, expect_posterior=True)
    frames, actions = some_latents(model.latents, 3, 9), some_actions(spec, 3, 8)
    blocks = model.blocks
    assert blocks is not None
    packed = torch.stack([blocks.pack(actions[:, :5]), blocks.pack(actions[:, 5:])], 1)
    packed = torch.cat([packed, packed[:, :1]], dim=1)
    with torch.no_grad():
        followed = model.cell(model.embed(frames[:, [0, 5, 8]]), packed)
        state = model.start(frames[:, :6], actions[:, :5])
        ahead = model.rollout(state, actions[:, 5:])
        seen = state
        for t in range(5, 8):
            seen = model.observe(seen, actions[:, t], frames[:, t + 1])
    assert torch.allclose(followed.prior[:, 2].flatten(1), ahead.latents[:, 0, 32:], atol=1e-5)
    assert torch.allclose(followed.features[:, 2], seen.latents[:, 0], atol=1e-5)


@SPECS
def test_every_weight_learns_from_blocks(spec: ActionSpec):
    model = model_of(spec, absolute=True, inverse_weight=1.0, overshooting=2, first_frames=2)
    losses = model.train().loss(a_batch(model, length=11))
    torch.stack([v for v in losses.values() if v.requires_grad]).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(value.isfinite() for value in losses.values())


def test_a_clip_that_is_not_whole_blocks_is_refused():
    with pytest.raises(ValueError, match="--clip-length 12 is not a multiple of --frameskip 5"):
        model_of(clip_length=12)
