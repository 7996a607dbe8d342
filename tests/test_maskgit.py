"""MaskGIT dynamics: what is masked, in what order codes are kept, and what a step sees."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from data.actions import ActionSpec
from data.batch import Batch
from models.dynamics.maskgit import MaskGit, MaskGitConfig, MaskGitMemory, masked_after
from models.layers.sampling import Sampling
from models.layers.transformer import TransformerConfig
from models.tokenizers.tokenizer import LatentSpec

SPEC = LatentSpec("discrete", (2, 3), dim=4, codebook_size=7, num_codebooks=2)
KEYS = ActionSpec("discrete", ("left", "still", "right"))
MOUSE = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (512.0, 512.0), pointer=True)
BLOCKS = TransformerConfig(dim=16, num_layers=2, num_heads=2, mlp_dim=32, context_frames=3)
CONFIG = MaskGitConfig(BLOCKS, clip_length=5, sampling_steps=3)


class Books:
    codebooks = torch.randn(2, 7, 2, generator=torch.Generator().manual_seed(0))


def a_model(actions: ActionSpec = KEYS, **changes: Any) -> MaskGit:
    torch.manual_seed(0)
    model = MaskGit(replace(CONFIG, **changes), SPEC, actions)
    model.load_codebook(Books())
    for name, weight in model.named_parameters():
        if weight.ndim > 1:  # branches start small, and then hardly show
            torch.nn.init.normal_(weight, std=0.3)
        if name == "copy_logit.bias":
            torch.nn.init.zeros_(weight)
    return model.eval()


def codes(rows: int = 4, frames: int = 5, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 7, (rows, frames, 12), generator=rng)


def keys(rows: int = 4, frames: int = 5) -> Tensor:
    return torch.randint(0, 3, (rows, frames), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_codes", [1, 2, 7, 64, 256])
@pytest.mark.parametrize("steps", [1, 2, 8, 25])
def test_each_pass_keeps_at_least_one_patch_and_the_last_one_all(num_codes: int, steps: int):
    steps = min(steps, num_codes)
    left = [num_codes, *masked_after(num_codes, steps)]
    assert len(left) == steps + 1 and left[-1] == 0
    assert all(after < before for before, after in pairwise(left))


def test_few_patches_are_kept_at_first_and_many_at_last():
    kept = -torch.tensor([256, *masked_after(256, 25)]).diff()
    assert kept[0] == 1 and kept[-1] > 10 and kept.sum() == 256


@pytest.mark.parametrize("order", ["confidence", "random"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("steps", [0, 1, 4, 25])
def test_a_step_leaves_no_code_masked(order: Any, temperature: float, steps: int):
    model = a_model()
    model.sampling = Sampling(temperature, steps=steps, order=order)
    with torch.no_grad():
        state = model.start(codes()[:, :2], keys()[:, :1])
        after = model.step(state, keys()[:, 2])
    assert after.latents.shape == (4, 12) and 0 <= after.latents.min() <= after.latents.max() < 7


def test_kept_patches_stay_and_the_surest_are_kept_first():
    model = a_model()
    chosen, score = codes(2, 1)[:, 0], torch.randn(1, 6)
    masked = torch.full((1, 12), model.mask)
    first = model._keep_surest(masked, chosen[:1], score, 4, 0.5)
    shown = (first[0] != model.mask).view(6, 2)
    surest = score[0].argsort(descending=True)[:2]
    assert shown.all(1).nonzero().flatten().tolist() == sorted(surest.tolist())
    assert torch.equal(shown.all(1), shown.any(1))  # all codes of a patch, or none
    second = model._keep_surest(first, chosen[1:], score, 0, 0.0)
    assert torch.equal(second, torch.where(first == model.mask, chosen[1:], first))


def test_a_mask_is_a_row_of_its_own_for_every_codebook():
    """Masking one code of a patch changes its patch alone, and not to what any code looks like."""
    model, one = a_model(), codes(1, 1)
    with torch.no_grad():
        before = model._embed(one, one)
        seen = []
        for book in (0, 1):
            masked = one.clone()
            masked[..., 4 + book] = model.mask  # of the third patch
            found = model._embed(masked, one)
            assert (found != before).any(-1)[0, 0].tolist() == [False] * 2 + [True] + [False] * 3
            for code in range(7):
                shown = one.clone()
                shown[..., 4 + book] = code
                assert (model._embed(shown, one)[0, 0, 2] - found[0, 0, 2]).abs().max() > 1e-3
            seen.append(found[0, 0, 2])
    assert (seen[0] - seen[1]).abs().max() > 1e-3


def test_only_the_predicted_frame_is_masked_and_only_masked_codes_are_learned():
    """At a rate of 1 nothing of the target reaches the model: the likeliest codes, and so the
    accuracy, are those of any other target with the same past."""
    model = a_model(min_mask_rate=1.0, token_noise=0.0, short_past=0.0, clip_length=3)
    latents, seen = codes(frames=3), []
    blocks = model._blocks

    def spy(given: Tensor, *rest: Any) -> Any:
        seen.append(given)
        return blocks(given, *rest)

    model._blocks = spy  # type: ignore[method-assign]
    model.train().loss(Batch(latents=latents, actions=keys(frames=3)))
    past, predicted, *_ = seen
    assert torch.equal(past, latents[:, :2]) and (predicted == model.mask).all()


def test_every_window_of_a_clip_is_predicted_from_its_own_past():
    """A clip's loss is the mean of those of its shorter clips, but for what the oldest frame has
    seen before: with one layer, nothing else."""
    config = replace(BLOCKS, num_layers=1)
    settings = {"transformer": config, "min_mask_rate": 1.0, "token_noise": 0.0, "short_past": 0.0}
    model = a_model(**settings)
    latents, actions = codes(), keys()
    with torch.no_grad():
        model.no_action.copy_(model.action_emb.table.weight[0])
        model.added_action.weight.zero_()
        model.added_action.bias.zero_()
        actions[:, :] = 0  # so that the first frame of a window is as any
        whole = model.masked_loss(latents, actions[:, :-1])["cross_entropy"]
        parts = [
            model.masked_loss(latents[:, t : t + 3], actions[:, t : t + 2])["cross_entropy"]
            for t in range(3)
        ]
    assert torch.allclose(whole, torch.stack(parts).mean(), rtol=1e-4)


def test_a_step_with_its_cache_equals_the_frames_together():
    """The logits of the first pass are those of all frames at once, the last one masked."""
    model = a_model(transformer=replace(BLOCKS, num_layers=1))
    latents, actions = codes(), keys()
    with torch.no_grad():
        state = model.start(latents[:, :2], actions[:, :1])
        for t in (2, 3, 4):  # until the repeats that it began with are behind the context
            state = model.observe(state, actions[:, t - 1], latents[:, t])
        memory = state.memory
        assert isinstance(memory, MaskGitMemory)
        masked = torch.full_like(latents[:, :1], model.mask)
        led = torch.cat([actions[:, :1] * 0, actions], dim=1)
        known = torch.ones_like(led, dtype=torch.bool)
        known[:, 0] = False
        whole, before = (torch.cat([latents, x], dim=1) for x in (masked, latents[:, -1:]))
        together, _ = model._blocks(whole, led, known, before=before)
        both = torch.stack([state.latents, masked[:, 0]], dim=1)
        now = torch.stack([memory.action, actions[:, 4]], dim=1)
        before = state.latents[:, None].expand_as(both)
        cached, _ = model._blocks(both, now, known[:, 1:3], memory.cache, before)
    assert torch.allclose(cached[:, -1], together[:, -1], atol=1e-4)


def test_rows_of_a_state_are_independent_and_can_be_selected():
    model = a_model()
    with torch.no_grad():
        state = model.start(codes()[:, :3], keys()[:, :2])
        after = model.step(state, keys()[:, 3])
        index = torch.tensor([2, 0, 2])
        part = model.step(state.select(index), keys()[index, 3])
    assert torch.equal(part.latents, after.latents[index])


def test_actions_change_what_is_predicted():
    for actions in (KEYS, MOUSE):
        model = a_model(actions)
        taken = [actions.empty(4, 1)[:, 0], actions.empty(4, 1)[:, 0] + 1]
        with torch.no_grad():
            state = model.start(codes()[:, :1], actions.empty(4, 0))
            found = [model.step(state, action).latents for action in taken]
        assert (found[0] != found[1]).any()


def test_a_world_can_be_entered_with_one_frame_as_with_that_frame_repeated():
    model = a_model(transformer=replace(BLOCKS, context_frames=4))
    with torch.no_grad():
        one = model.start(codes()[:, :1], keys()[:, :0])
        assert isinstance(one.memory, MaskGitMemory)
        assert one.memory.cache.keys[0].shape[3] == 3 and not one.memory.known.any()
        assert (model.step(one, keys()[:, 0]).latents < 7).all()
    past, known = model.train()._shorten(codes())
    assert torch.equal(past, codes()) or not known.all()


def test_short_pasts_repeat_a_later_frame_and_forget_how_it_came():
    model = a_model(short_past=1.0)
    torch.manual_seed(0)
    past, known = model._shorten(codes(64))
    repeated = (past[:, 0] == codes(64)[:, 1]).all(-1)
    assert 0.3 < repeated.float().mean() < 0.7
    assert not known[:, 0].any() and torch.equal(~known[:, 1], repeated) and known[:, 2:].all()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"transformer": replace(BLOCKS, context_frames=1)}, "--transformer.context-frames 1 lea"),
        ({"clip_length": 2}, "--clip-length 2 is shorter than --transformer.context-frames 3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: Any, message: str):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="predicts codes, but the run's tokenizer makes vectors"):
        MaskGit(CONFIG, LatentSpec("continuous", (1, 1), 4), KEYS)


def test_a_share_of_frames_is_masked_whole():
    for share in (0.0, 1.0):
        model = a_model(min_mask_rate=0.0, all_masked=share)
        torch.manual_seed(0)
        masked = model._random_mask(codes(64))
        whole = masked.all(-1).float().mean()
        assert whole == 1 if share else whole < 0.2
        assert torch.equal(masked[..., ::2], masked[..., 1::2])  # patches, not codes


def test_a_predicted_frame_is_given_what_was_there_before():
    """A patch that shows something else before is predicted otherwise, with the same past."""
    model = a_model()
    latents, actions = codes(), keys()
    known = torch.ones(4, 2, dtype=torch.bool)
    other = latents[:, 1:2].clone()
    other[..., 0] = (other[..., 0] + 1) % 7  # of the first patch
    with torch.no_grad():
        _, past = model._blocks(latents[:, :2], actions[:, :2], known)
        masked = torch.full_like(other, model.mask)
        found = [model._predict(masked, x, actions[:, 2:3], past) for x in (latents[:, 1:2], other)]
    assert ((found[0] - found[1])[:, 0, 0].abs().amax(-1) > 1e-3).all()


def shifted(rows: int = 32, frames: int = 5) -> Batch:
    """Codes that an action of 0, 1 or 2 raises by as much, alike everywhere."""
    actions = torch.randint(0, 3, (rows, frames - 1))
    raised = torch.cat([actions[:, :1] * 0, actions], dim=1).cumsum(1)[..., None]
    return Batch(latents=(torch.randint(0, 7, (rows, 1, 12)) + raised) % 7, actions=actions)


def test_it_learns_to_listen_to_actions():
    torch.manual_seed(0)
    model = MaskGit(replace(CONFIG, token_noise=0.0), SPEC, KEYS)
    model.load_codebook(Books())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    gaps = []
    for _ in range(60):
        losses = model.loss(shifted())
        optimizer.zero_grad()
        losses["cross_entropy"].backward()
        optimizer.step()
        gaps.append(float(losses["action_gap"]))
    assert abs(gaps[0]) < 0.1 and sum(gaps[-10:]) > 10  # nats, in a world of 7 codes


def test_deaf_dynamics_are_said_once_and_with_a_way_out():
    model = a_model().train()
    with torch.no_grad():
        model.action_emb.table.weight[:] = model.action_emb.table.weight[:1]  # all sound alike
    gap = float(model.loss(shifted())["action_gap"])
    assert gap == pytest.approx(0, abs=1e-5)
    said = [line for _ in range(40) for line in model.advise({"action_gap": gap})]
    assert len(said) == 1 and "deaf to actions" in said[0] and "--model.all-masked" in said[0]
    heard = [line for _ in range(40) for line in a_model().advise({"action_gap": 0.4})]
    assert not heard and not model.advise({"action_error": 1.0})


def test_a_code_depends_on_those_before_it_in_its_patch_and_not_on_those_after():
    """The first is predicted alone, the second given the first: of its own patch."""
    model, one = a_model(), codes(1, 1)
    out = torch.randn(1, 1, 6, 16)
    with torch.no_grad():
        before, _ = model.cross_entropy(out, one, one)
        for book, changed in ((0, [4, 5]), (1, [5])):
            other = one.clone()
            other[..., 4 + book] = (other[..., 4 + book] + 1) % 7  # of the third patch
            after, _ = model.cross_entropy(out, one, other)
            assert (after != before).flatten().nonzero().flatten().tolist() == changed


def test_the_codes_that_are_chosen_have_the_probability_that_is_learned():
    """The score is minus the cross-entropy of the same codes, summed over a patch."""
    model, before = a_model(), codes(4, 1)[:, 0]
    out = torch.randn(4, 6, 16)
    with torch.no_grad():
        sampling = Sampling(1.0)
        chosen, score = model.choose(out, before, model.output_weight(), sampling)
        losses, _ = model.cross_entropy(out, before, chosen)
    assert torch.allclose(score, -losses.view(4, 6, 2).sum(-1), atol=1e-4)


def test_codes_that_only_occur_together_are_sampled_together():
    """Both codes of a patch are 0, or both are 1: a half each, and never one of each."""
    torch.manual_seed(0)
    config = replace(CONFIG, token_noise=0.0, changed_token_weight=1.0)
    model = MaskGit(config, SPEC, KEYS)
    model.load_codebook(Books())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        latents = torch.randint(0, 2, (32, 5, 6)).repeat_interleave(2, dim=-1)
        losses = model.loss(Batch(latents=latents, actions=keys(32, 4)))
        optimizer.zero_grad()
        losses["cross_entropy"].backward()
        optimizer.step()
    model.eval().sampling = Sampling(1.0, steps=1)
    with torch.no_grad():
        state = model.start(torch.zeros(64, 2, 12, dtype=torch.int64), keys(64, 1))
        first, second = model.step(state, keys(64, 1)[:, 0]).latents.view(-1, 2).T
    assert (first != second).float().mean() < 0.05
    assert 0.2 < first.float().mean() < 0.8


def test_of_many_places_the_middle_is_drawn_and_not_the_likeliest_nothing():
    """No place of a thing is as likely as none, but most of the probability is on places."""
    model = a_model()
    model.code_numbers[0] = torch.tensor([8.0, 1.0, 2.0, 3.0, 4.0, 5.0, 20.0])[:, None]
    probs = torch.tensor([0.25, 0.15, 0.15, 0.15, 0.15, 0.15, 0.0])
    assert probs.argmax() == 0 and int(model._least_risk(probs.log(), 0)) == 4  # mean 4.25
    certain = torch.full((7,), -100.0).index_fill(0, torch.tensor(6), 0.0)
    assert int(model._least_risk(certain, 0)) == 6
