import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from untrained_run import write_run

from data.clips import Clips
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from models.layers.int8 import quantize_linears
from pipeline.batches import latent_cache
from pipeline.batches.clip_batches import ClipBatches
from pipeline.batches.latent_cache import cache_latents
from pipeline.inference.load_controllers import (
    load_controller,
    load_controllers,
    load_goal_policy,
)
from pipeline.inference.load_tokenizer import load_tokenizer
from pipeline.inference.load_world import load_world


@pytest.fixture(scope="module", params=[False, True], ids=["continuous", "discrete"])
def run(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_toy_shards(folder / "shards", discrete=request.param)
    return write_run(folder, EpisodeDataset(folder / "shards"))


def clip(run: Path, frames: int = 6):
    return Clips(EpisodeDataset(run / "shards"), "train", frames).batch(torch.arange(4).numpy())


def test_a_world_is_reset_stepped_and_decoded(run):
    world, real = load_world(run, "cpu"), clip(run)
    state = world.reset(real.frames[:, :3], real.actions[:, :2])
    for t in range(2, 5):
        state = world.step(state, real.actions[:, t])
        assert state.reward.shape == state.continues.shape == (4,)
        assert ((state.continues >= 0) & (state.continues <= 1)).all()
    seen = world.decode(state)
    assert seen.shape == (4, 3, 32, 32) and seen.dtype == torch.uint8


def test_a_rollout_equals_single_steps_in_either_unit(run):
    world, real = load_world(run, "cpu"), clip(run)
    start = world.reset(real.frames[:, :1], real.actions[:, :0])
    state = start
    for t in range(3):
        state = world.step(state, real.actions[:, t])
    acts = real.actions[:, :3]
    for end in (
        world.rollout(start, acts),
        world.imagine(start, world.actions.normalize(acts)),
    ):
        assert torch.equal(end.latents, state.latents)


def test_frames_before_the_context_are_ignored(run):
    world, real = load_world(run, "cpu"), clip(run)
    long = world.step(world.reset(real.frames, real.actions[:, :5]), real.actions[:, 5])
    short = world.step(world.reset(real.frames[:, -3:], real.actions[:, 3:5]), real.actions[:, 5])
    assert torch.equal(long.latents, short.latents)


def test_one_frame_is_enough_to_reset(run):
    world, real = load_world(run, "cpu"), clip(run)
    state = world.reset(real.frames[:, :1], real.actions[:, :0])
    assert len(world.step(state, real.actions[:, 0])) == 4


def as_loaded(
    run: Path, monkeypatch: pytest.MonkeyPatch, precision: str, int8: bool = False
) -> Any:
    """Dynamics of a world loaded with a precision."""
    monkeypatch.setattr("pipeline.inference.load_world.pick_precision", lambda *_: precision)
    return load_world(run, "cpu", int8=int8).dynamics


def test_a_world_stores_weights_in_its_precision(run, monkeypatch):
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        dynamics = as_loaded(run, monkeypatch, precision)
        linear = [m for m in dynamics.modules() if type(m) is nn.Linear]
        assert linear and {m.weight.dtype for m in linear} == {dtype}


def test_8_bit_weights_are_quantized_from_the_saved_ones(run, monkeypatch):
    mine = as_loaded(run, monkeypatch, "bf16", int8=True).state_dict()
    exact = as_loaded(run, monkeypatch, "fp32")
    assert quantize_linears(exact) > 0
    whole = {name: w for name, w in exact.state_dict().items() if w.dtype == torch.int8}
    assert whole and all(torch.equal(mine[name], w) for name, w in whole.items())


def test_a_run_has_the_controllers_that_were_trained_and_no_others(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "controller" / "best.pt").unlink()
    world = load_world(tmp_path / "run", "cpu")
    assert set(load_controllers(tmp_path / "run", world)) == {"bc"}
    assert load_controller(tmp_path / "run", world) is not None
    assert "holds no actor-critic; the behavior cloning (bc) acts" in capsys.readouterr().out


def test_controllers_act_in_the_environments_units(run):
    world, real = load_world(run, "cpu"), clip(run)
    controllers = load_controllers(run, world)
    assert set(controllers) == {"bc", "actor_critic"}
    state = world.reset(real.frames[:, :1], real.actions[:, :0])
    for controller in controllers.values():
        action = controller.act(state)
        assert action.shape == (4, *world.actions.shape)
        if world.actions.kind == "continuous":
            assert (action >= 0).all() and (action <= 512).all() and action.max() > 1


def test_cached_latents_are_the_tokenizers_and_are_computed_once(run):
    dataset = EpisodeDataset(run / "shards")
    tokenizer, checkpoint = load_tokenizer(run, "cpu")
    where = run / "latents"
    known = checkpoint["fingerprint"]
    device = torch.device("cpu")
    made = cache_latents(where, tokenizer, known, dataset, device)
    clips = ClipBatches(Clips(dataset, "train", 4), frozenset({"latents"}), made)

    def latents_of(*indices: int) -> Tensor:
        return clips.batch(np.array(indices)).require("latents")[0]

    before = latents_of(0, 1, 2, 3, 4)
    clips.cache_on_device(torch.device("meta"), made.nbytes - 1)
    assert torch.equal(latents_of(0, 1, 2, 3, 4), before)
    clips.cache_on_device(device, made.nbytes)
    assert torch.equal(latents_of(0, 1, 2, 3, 4), before)
    frames = clips.clips.batch(np.array([0, 9])).frames
    assert torch.equal(latents_of(0, 9), tokenizer.encode_clip(frames))

    class Refuses:
        latents, temporal_context = tokenizer.latents, 1

        def encode_clip(self, frames):
            raise AssertionError("encoded again")

        def latents_key(self, fingerprint):
            return fingerprint

    again = cache_latents(where, Refuses(), known, dataset, device)
    assert (again == made).all()
    with pytest.raises(AssertionError, match="encoded again"):
        cache_latents(where, Refuses(), "another tokenizer", dataset, device)


def test_an_interrupted_cache_resumes(run, monkeypatch):
    monkeypatch.setattr(latent_cache, "CHUNK", 1)
    dataset = EpisodeDataset(run / "shards")
    tokenizer, _ = load_tokenizer(run, "cpu")

    class Stops:
        latents, temporal_context = tokenizer.latents, 1
        latents_key = tokenizer.latents_key
        calls = 0

        def encode_clip(self, frames):
            self.calls += 1
            if self.calls == 120:
                raise KeyboardInterrupt
            return tokenizer.encode_clip(frames)

    where, device = run / "cut", torch.device("cpu")
    with pytest.raises(KeyboardInterrupt):
        cache_latents(where, Stops(), "f", dataset, device)
    rest = Stops()
    rest.calls = -1000
    made = cache_latents(where, rest, "f", dataset, device)
    # the first hundred frames were kept
    assert 0 < rest.calls + 1000 == dataset.num_frames - 100
    frames = torch.from_numpy(dataset.read_rows("frames", 0, 5)).permute(0, 3, 1, 2)
    assert (tokenizer.encode(frames).numpy() == made[:5]).all()


def codes_world(folder: Path):
    """A world of codes with random codebooks (untrained they are zero)."""
    write_toy_shards(folder / "shards", discrete=True)
    world = load_world(write_run(folder, EpisodeDataset(folder / "shards")), "cpu")
    world.precision = "fp32"  # the tokenizer is called without autocast below
    world.dynamics.float()  # type: ignore[attr-defined]
    torch.manual_seed(0)
    for quantizer in world.tokenizer.quantizers:  # type: ignore[attr-defined]
        quantizer._codebook.embed.normal_()
    return world


def test_the_residual_of_the_last_real_frame_is_added_where_codes_do_not_change(
    tmp_path, monkeypatch
):
    world = codes_world(tmp_path)
    real = clip(tmp_path)
    frames = real.frames[:, :1].expand(-1, 3, -1, -1, -1)  # a still scene
    state = world.reset(frames, real.actions[:, :2])
    assert torch.equal(world.decode(state), frames[:, -1]), "all of the residual persists"
    decoded = world.tokenizer.decode(state.latents)
    assert not torch.equal(decoded, frames[:, -1])
    other = state.latents.clone()
    other[:, ::3] = (other[:, ::3] + 1) % world.latents.codebook_size
    monkeypatch.setattr(
        world.dynamics, "step", lambda *_: replace(state, latents=other, frame_residual=None)
    )
    after = world.step(state, real.actions[:, 2])
    changed = (after.latents != state.latents).view(4, world.latents.num_patches, -1)
    assert after.frame_residual is not None and changed.any()
    assert torch.equal(after.frame_residual.unchanged, 1 - changed.float().mean(-1)), (
        "codebook by codebook"
    )
    share = after.frame_residual.unchanged.view(4, 1, *world.latents.grid)
    height, width = (
        side // cells for side, cells in zip(world.image_size, world.latents.grid, strict=True)
    )
    share = share.repeat_interleave(height, 2).repeat_interleave(width, 3)
    expected = world.tokenizer.decode(after.latents) + share * (frames[:, -1].float() - decoded)
    assert torch.equal(world.decode(after), expected.round().clamp(0, 255).byte())


def test_noise_is_not_part_of_the_residual(tmp_path):
    world = codes_world(tmp_path)
    real = clip(tmp_path)
    torch.manual_seed(0)
    scene = real.frames[:, :1].expand(-1, 3, -1, -1, -1).float() * 0.5 + 60
    noisy = (scene + 12 * torch.randn(scene.shape)).clamp(0, 255).byte()
    next_one = (scene[:, 0] + 12 * torch.randn(scene[:, 0].shape)).clamp(0, 255)
    seen = world.decode(world.reset(noisy, real.actions[:, :2])).float()
    error = (seen - next_one).square().mean()
    assert error < (noisy[:, -1].float() - next_one).square().mean(), "a copy repeats the noise"
    assert error < (world.tokenizer.decode(world.encode(noisy[:, -1])) - next_one).square().mean()


def test_rows_of_a_state_keep_their_residual(tmp_path):
    world = codes_world(tmp_path)
    real = clip(tmp_path)
    state = world.step(world.reset(real.frames[:, :3], real.actions[:, :2]), real.actions[:, 2])
    seen = world.decode(state)
    swapped = world.decode(state.select(torch.tensor([2, 0])))
    assert torch.equal(swapped, seen[[2, 0]])
    untouched = world.step(world.reset(real.frames[:, :3], real.actions[:, :2]), real.actions[:, 2])
    assert torch.equal(world.decode(untouched.select(torch.tensor([2]))), seen[[2]])


def test_latents_of_a_tokenizer_in_16_bits_are_handed_out_in_32(tmp_path, monkeypatch):
    """`encode` of a new tokenizer returns what its last layer does under autocast."""
    write_toy_shards(tmp_path / "shards")
    run = write_run(tmp_path, EpisodeDataset(tmp_path / "shards"), method="keypoints")
    world, real = load_world(run, "cpu"), clip(tmp_path)
    world.precision = "bf16"
    encode = world.tokenizer.encode
    monkeypatch.setattr(world.tokenizer, "encode", lambda frames: encode(frames).bfloat16())
    state = world.reset(real.frames[:, :2], real.actions[:, :1])
    for latents in (
        state.latents,
        world.observe(state, real.actions[:, 1], real.frames[:, 2]).latents,
        world.states(real.frames, real.actions[:, :-1]),
        world.encode(real.frames[:, 0]),
        world.encode_clip(real.frames),
        world.embed(real.frames[:, 0]),
    ):
        assert latents.dtype == torch.float32
    policy = load_goal_policy(run, world)
    assert policy is not None
    with torch.no_grad():  # a product of 16 and of 32 bits would be an error
        policy(state.latents, world.embed(real.frames[:, 3]), real.actions[:, 0])


def test_a_reset_encodes_only_the_frames_that_the_dynamics_reads(tmp_path, monkeypatch):
    write_toy_shards(tmp_path / "shards", episodes=12)
    dataset = EpisodeDataset(tmp_path / "shards")
    world = load_world(write_run(tmp_path, dataset, controllers=False, method="keypoints"))
    real = clip(tmp_path, frames=world.context + 2)
    frames, actions = real.frames, real.actions[:, :-1]
    encode, encoded = world.tokenizer.encode_clip, []

    def counted(clip: torch.Tensor) -> torch.Tensor:
        encoded.append(clip.shape[1])
        return encode(clip)

    monkeypatch.setattr(world.tokenizer, "encode_clip", counted)
    assert (world.context, world.dynamics.context_interval) == (11, 5)
    state = world.reset(frames, actions)
    assert encoded == [3]
    all_encoded = world.encode_clip(frames[:, 2:])
    expected = world.start_from(all_encoded, world.actions.normalize(actions[:, 2:]))
    after, same = (s.latents for s in (world.step(s, actions[:, 0]) for s in (state, expected)))
    assert torch.allclose(after, same, atol=1e-2)  # the same in 16 bits
    encoded.clear()
    assert world.reset(frames[:, :4], actions[:, :3]).latents.shape == state.latents.shape
    assert encoded == [1]
