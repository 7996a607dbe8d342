from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from untrained_run import write_run

from data.clips import Clips
from data.shards import EpisodeDataset
from data.toy import write_toy_shards
from models.layers.int8 import quantize_linears
from pipeline.inference.load import load_controllers, load_tokenizer, load_world
from pipeline.training.latents import LatentClips, cache_latents


@pytest.fixture(scope="module", params=[False, True], ids=["continuous", "discrete"])
def run(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_toy_shards(folder / "shards", discrete=request.param)
    return write_run(folder, EpisodeDataset(folder / "shards"))


def clip(run: Path, frames: int = 6):
    return Clips(EpisodeDataset(run / "shards"), "train", frames).batch(torch.arange(4).numpy())


def test_a_world_is_entered_acted_in_and_looked_at(run):
    world, shown = load_world(run, "cpu"), clip(run)
    state = world.reset(shown.frames[:, :3], shown.actions[:, :2])
    for t in range(2, 5):
        state = world.step(state, shown.actions[:, t])
        assert state.reward.shape == state.continues.shape == (4,)
        assert ((state.continues >= 0) & (state.continues <= 1)).all()
    seen = world.decode(state)
    assert seen.shape == (4, 3, 32, 32) and seen.dtype == torch.uint8


def test_many_steps_are_imagined_at_once_in_the_environments_units_or_normalised(run):
    world, shown = load_world(run, "cpu"), clip(run)
    start = world.reset(shown.frames[:, :1], shown.actions[:, :0])
    state = start
    for t in range(3):
        state = world.step(state, shown.actions[:, t])
    acts = shown.actions[:, :3]
    for end in (
        world.rollout(start, acts),
        world.imagine(start, world.actions.normalize(acts)),
    ):
        assert torch.equal(end.latents, state.latents)


def test_more_past_than_the_context_is_left_out(run):
    world, shown = load_world(run, "cpu"), clip(run)
    long = world.step(world.reset(shown.frames, shown.actions[:, :5]), shown.actions[:, 5])
    short = world.step(
        world.reset(shown.frames[:, -3:], shown.actions[:, 3:5]), shown.actions[:, 5]
    )
    assert torch.equal(long.latents, short.latents)


def test_one_frame_is_enough_to_enter(run):
    world, shown = load_world(run, "cpu"), clip(run)
    state = world.reset(shown.frames[:, :1], shown.actions[:, :0])
    assert len(world.step(state, shown.actions[:, 0])) == 4


def as_loaded(run: Path, monkeypatch: pytest.MonkeyPatch, kind: str, int8: bool = False) -> Any:
    """Dynamics of a world on a CPU that multiplies in `kind`."""
    monkeypatch.setattr("pipeline.inference.load.pick_precision", lambda *_: kind)
    return load_world(run, "cpu", int8=int8).dynamics


def test_a_world_holds_weights_in_the_type_that_they_are_multiplied_in(run, monkeypatch):
    for kind, held in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        linear = [m for m in as_loaded(run, monkeypatch, kind).modules() if type(m) is nn.Linear]
        assert linear and {m.weight.dtype for m in linear} == {held}


def test_weights_in_8_bits_are_made_of_those_that_were_saved(run, monkeypatch):
    mine = as_loaded(run, monkeypatch, "bf16", int8=True).state_dict()
    exact = as_loaded(run, monkeypatch, "fp32")
    assert quantize_linears(exact) > 0
    whole = {name: w for name, w in exact.state_dict().items() if w.dtype == torch.int8}
    assert whole and all(torch.equal(mine[name], w) for name, w in whole.items())


def test_controllers_answer_in_the_environments_units(run):
    world, shown = load_world(run, "cpu"), clip(run)
    controllers = load_controllers(run, world)
    assert set(controllers) == {"cloning", "controller"}
    state = world.reset(shown.frames[:, :1], shown.actions[:, :0])
    for sample in (False, True):
        action = controllers["controller"].act(state, sample)
        assert action.shape == (4, *world.actions.shape)
        if world.actions.kind == "continuous":
            assert (action >= 0).all() and (action <= 512).all() and action.max() > 1


def test_cached_latents_are_the_tokenizers_and_are_made_once(run):
    recordings = EpisodeDataset(run / "shards")
    tokenizer, checkpoint = load_tokenizer(run, "cpu")
    where = run / "latents"
    known = checkpoint["fingerprint"]
    made = cache_latents(where, tokenizer, known, recordings, torch.device("cpu"), batch_size=7)
    clips = LatentClips(Clips(recordings, "train", 4), made)
    before = clips.batch(np.arange(5)).latents
    clips.cache_on_device(torch.device("meta"), made.nbytes - 1)
    assert torch.equal(clips.batch(np.arange(5)).latents, before)
    clips.cache_on_device(torch.device("cpu"), made.nbytes)
    assert torch.equal(clips.batch(np.arange(5)).latents, before)
    batch = clips.batch(torch.tensor([0, 9]).numpy())
    frames = clips.clips.batch(torch.tensor([0, 9]).numpy()).frames
    assert torch.equal(batch.latents, tokenizer.encode(frames.flatten(0, 1)).view(2, 4, -1))

    class Refuses:
        latents = tokenizer.latents

        def encode(self, frames):
            raise AssertionError("encoded again")

    device = torch.device("cpu")
    again = cache_latents(where, Refuses(), known, recordings, device)
    assert (again == made).all()
    with pytest.raises(AssertionError, match="encoded again"):
        cache_latents(where, Refuses(), "another tokenizer", recordings, device)


def test_an_interrupted_cache_goes_on(run):
    recordings = EpisodeDataset(run / "shards")
    tokenizer, _ = load_tokenizer(run, "cpu")

    class Stops:
        latents = tokenizer.latents
        calls = 0

        def encode(self, frames):
            self.calls += 1
            if self.calls == 120:
                raise KeyboardInterrupt
            return tokenizer.encode(frames)

    where, device = run / "cut", torch.device("cpu")
    with pytest.raises(KeyboardInterrupt):
        cache_latents(where, Stops(), "f", recordings, device, batch_size=1)
    rest = Stops()
    rest.calls = -1000
    made = cache_latents(where, rest, "f", recordings, device, batch_size=1)
    assert (
        0 < rest.calls + 1000 == recordings.num_frames - 100
    )  # the first hundred frames were kept
    frames = torch.from_numpy(recordings.read_rows("frames", 0, 5)).permute(0, 3, 1, 2)
    assert (tokenizer.encode(frames).numpy() == made[:5]).all()


def codes_world(folder: Path):
    """A world of codes, whose codebooks are random (untrained they are zero)."""
    write_toy_shards(folder / "shards", discrete=True)
    world = load_world(write_run(folder, EpisodeDataset(folder / "shards")), "cpu")
    world.precision = "fp32"  # as the tokenizer is asked by itself, whatever this CPU has
    world.dynamics.float()  # type: ignore[attr-defined]
    torch.manual_seed(0)
    for quantizer in world.tokenizer.quantizers:  # type: ignore[attr-defined]
        quantizer._codebook.embed.normal_()
    return world


def test_what_codes_lose_of_the_last_real_frame_is_kept_where_nothing_changes(
    tmp_path, monkeypatch
):
    world = codes_world(tmp_path)
    shown = clip(tmp_path)
    frames = shown.frames[:, :1].expand(-1, 3, -1, -1, -1)  # a scene that stands still
    state = world.reset(frames, shown.actions[:, :2])
    assert torch.equal(world.decode(state), frames[:, -1]), "so all that was lost stays"
    drawn = world.tokenizer.decode(state.latents)
    assert not torch.equal(drawn, frames[:, -1])
    other = state.latents.clone()
    other[:, ::3] = (other[:, ::3] + 1) % world.latents.codebook_size
    monkeypatch.setattr(
        world.dynamics, "step", lambda *_: replace(state, latents=other, frame_residual=None)
    )
    after = world.step(state, shown.actions[:, 2])
    changed = (after.latents != state.latents).view(4, world.latents.num_patches, -1)
    assert after.frame_residual is not None and changed.any()
    assert torch.equal(after.frame_residual.unchanged, 1 - changed.float().mean(-1)), (
        "codebook by codebook"
    )
    share = after.frame_residual.unchanged.view(4, 1, *world.latents.grid)
    share = share.repeat_interleave(world.patch_size[0], 2).repeat_interleave(
        world.patch_size[1], 3
    )
    expected = world.tokenizer.decode(after.latents) + share * (frames[:, -1].float() - drawn)
    assert torch.equal(world.decode(after), expected.round().clamp(0, 255).byte())


def test_noise_is_not_kept(tmp_path):
    world = codes_world(tmp_path)
    shown = clip(tmp_path)
    torch.manual_seed(0)
    scene = shown.frames[:, :1].expand(-1, 3, -1, -1, -1).float() * 0.5 + 60
    noisy = (scene + 12 * torch.randn(scene.shape)).clamp(0, 255).byte()
    next_one = (scene[:, 0] + 12 * torch.randn(scene[:, 0].shape)).clamp(0, 255)
    seen = world.decode(world.reset(noisy, shown.actions[:, :2])).float()
    apart = (seen - next_one).square().mean()
    assert apart < (noisy[:, -1].float() - next_one).square().mean(), "a copy repeats the noise"
    assert apart < (world.tokenizer.decode(world.encode(noisy[:, -1])) - next_one).square().mean()


def test_rows_of_a_state_keep_what_is_theirs(tmp_path):
    world = codes_world(tmp_path)
    shown = clip(tmp_path)
    state = world.step(world.reset(shown.frames[:, :3], shown.actions[:, :2]), shown.actions[:, 2])
    seen = world.decode(state)
    swapped = world.decode(state.select(torch.tensor([2, 0])))
    assert torch.equal(swapped, seen[[2, 0]])
    untouched = world.step(
        world.reset(shown.frames[:, :3], shown.actions[:, :2]), shown.actions[:, 2]
    )
    assert torch.equal(world.decode(untouched.select(torch.tensor([2]))), seen[[2]])
