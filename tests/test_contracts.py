"""What the contracts allow, each used by a small method of its own (tests/fake_methods.py).

One file because each contract is a page of its own, used by the same small methods.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_methods import (
    CausalConfig,
    CausalTokenizer,
    JointConfig,
    JointWorld,
    LatentActionConfig,
    TargetConfig,
    TargetEncoder,
    register,
)
from torch import Tensor

import play
import train_controller
import train_dynamics
import train_tokenizer
from data.actions import ActionSpec
from data.batch import Batch
from data.clips import Clips
from data.shards.build_info import shard_name
from data.shards.episode_dataset import EpisodeDataset
from data.shards.splits import split_sources
from data.shards.write_shard import write_shard
from data.toy import ToyEpisodes, write_toy_shards
from evaluation.measures.open_loop import open_loop
from evaluation.measures.world_clips import world_clips
from models import registry
from models.controllers.actor_critic import ActorCritic, ActorCriticConfig
from models.controllers.policy import PolicyConfig
from models.layers.transformer import TransformerConfig
from models.registry import DataSpec
from models.tokenizers.vqvae import VqVae, VqVaeConfig
from models.world import World
from pipeline import checkpoint as ckpt
from pipeline.batches.latent_cache import cache_latents
from pipeline.batches.state_cache import cache_states
from pipeline.device import pick_precision
from pipeline.inference.load_controllers import load_controllers
from pipeline.inference.load_world import load_world
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Trainer

CPU = torch.device("cpu")
TRAIN = TrainConfig(
    steps=8, batch_size=8, learning_rate=1e-2, warmup_steps=1, eval_every=4, save_every=4,
    log_every=1, precision="fp32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def methods(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_shards(tmp_path_factory.mktemp("toy") / "shards", episodes=12, length=30)


def rounding(exact: float) -> float:
    """The tolerance of values of size 1, or of pixels: `exact`, but where a CPU has bf16."""
    if pick_precision(CPU, "auto") == "fp32":
        return exact
    return 3.0 if exact >= 1 else 0.03


def a_run(folder: Path, shards: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "shards").symlink_to(shards)
    return folder


def last(run: Path, stage: str) -> dict[str, Any]:
    return ckpt.load(run / stage / "last.pt", stage)


def logged(folder: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


# -- a world that is trained jointly ---------------------------------------------------------


def test_a_joint_world_needs_no_tokenizer_and_is_a_world_like_any_other(tmp_path, shards):
    run = a_run(tmp_path / "joint", shards)
    train_dynamics.main(train_dynamics.Config(run, JointConfig(), train=TRAIN))
    assert not (run / "tokenizer").exists() and not (run / "latents").exists()
    world = load_world(run)
    assert isinstance(world.dynamics, JointWorld) and world.state_spec != world.latents
    dataset = EpisodeDataset(run / "shards")
    figures = open_loop(world, Clips(dataset, "test", world.context + 2), (1, 2), num_clips=4)
    assert np.isfinite(figures["psnr"]).all()
    assert logged(run / "dynamics", "validation/psnr")

    bc = replace(TRAIN, eval_every=8)
    actor = replace(TRAIN, steps=2, eval_every=2, batch_size=4)
    model = ActorCriticConfig(PolicyConfig(hidden_dim=16), horizon=3)
    train_controller.main(
        train_controller.Config(run, model=model, min_reward=0.0, bc=bc, train=actor)
    )
    action = load_controllers(run, world)["actor_critic"].act(
        world.reset(torch.zeros(3, 1, 3, 32, 32, dtype=torch.uint8), world.actions.empty(3, 0))
    )
    assert action.shape == (3, 2)


def test_controllers_of_a_joint_world_read_its_states_along_each_episode(
    tmp_path, shards, monkeypatch
):
    dataset = EpisodeDataset(shards)
    torch.manual_seed(0)
    joint = JointWorld(JointConfig(), (32, 32), dataset.actions)
    world = World(joint, joint)
    states = cache_states(tmp_path / "all", world, "x", dataset)
    monkeypatch.setattr("pipeline.batches.state_cache.MOST_FRAMES", dataset.length(0) + 1)
    alone = cache_states(tmp_path / "alone", world, "x", dataset)
    assert np.allclose(states, alone, atol=1e-3)  # not of which episodes are followed together
    first, length = int(dataset.first_rows[3]), dataset.length(3)
    frames = torch.from_numpy(dataset.read(3, "frames")).permute(0, 3, 1, 2)[None]
    actions = torch.from_numpy(dataset.read(3, "actions"))[None]
    with torch.no_grad():
        state = world.reset(frames[:, :1], actions[:, :0])
        for t in range(1, length):
            state = world.observe(state, actions[:, t - 1], frames[:, t])
    stored = torch.from_numpy(np.array(states[first + length - 1])).float()
    assert torch.allclose(stored, state.latents[0], atol=1e-3)  # kept in float16


def test_goals_and_decoder_speak_of_states_where_these_are_not_what_the_encoder_makes(shards):
    joint = JointWorld(JointConfig(), (32, 32), EpisodeDataset(shards).actions)
    world = World(joint, joint)
    frames = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    state = world.reset(frames[:, None], world.actions.empty(2, 0))
    assert torch.equal(world.embed(frames), state.latents)
    assert torch.equal(world.decode(state), joint.decode(state.latents))


# -- a tokenizer that is causal in time ------------------------------------------------------


def test_a_causal_tokenizer_encodes_every_frame_with_those_of_its_own_episode(tmp_path, shards):
    run = a_run(tmp_path / "causal", shards)
    train_tokenizer.main(train_tokenizer.Config(run, CausalConfig(), TRAIN))
    assert logged(run / "tokenizer", "validation/psnr")
    dataset = EpisodeDataset(run / "shards")
    tokenizer, _ = train_dynamics.load_tokenizer(run)
    latents = cache_latents(tmp_path / "latents", tokenizer, "x", dataset, CPU)
    for episode in (0, 5):
        first, length = int(dataset.first_rows[episode]), dataset.length(episode)
        frames = torch.from_numpy(dataset.read(episode, "frames")).permute(0, 3, 1, 2)[None]
        with torch.no_grad():
            whole = tokenizer.encode_clip(frames)[0]
        stored = torch.from_numpy(np.array(latents[first : first + length])).float()
        assert torch.allclose(stored, whole, atol=rounding(1e-3))


def test_a_world_over_a_causal_tokenizer_decodes_and_observes_with_the_past(tmp_path, shards):
    run = a_run(tmp_path / "causal", shards)
    train_tokenizer.main(train_tokenizer.Config(run, CausalConfig(), TRAIN))
    small = TransformerConfig(dim=16, num_layers=1, num_heads=2, mlp_dim=16, context_frames=2)
    model = replace(
        registry.default_config("predictor"), transformer=small, frameskip=2, clip_length=5
    )
    train_dynamics.main(train_dynamics.Config(run, model, train=TRAIN))
    world = load_world(run)
    assert world.context == 3 + 2  # what dynamics uses, and two more to encode the first with
    assert isinstance(world.tokenizer, CausalTokenizer)
    frames = torch.randint(0, 255, (2, 6, 3, 32, 32), dtype=torch.uint8)
    actions = torch.rand(2, 5, 2)
    with torch.no_grad():
        state = world.reset(frames[:, :5], actions[:, :4])
        known = world.tokenizer.encode_clip(frames)
        assert torch.allclose(world.decode(state).float(), world.tokenizer.decode_clip(
            known[:, :5])[:, -1].float(), atol=rounding(1))  # fmt: skip
        after = world.observe(state, actions[:, 4], frames[:, 5])
        assert torch.allclose(after.latents, known[:, 5], atol=rounding(1e-5))
        drawn = world.tokenizer.decode_clip(known)[:, -1]
        assert torch.allclose(world.decode(after).float(), drawn.float(), atol=1)


# -- data without actions --------------------------------------------------------------------


def test_a_model_infers_its_own_actions_where_the_data_has_none(tmp_path):
    run = tmp_path / "videos"
    source = ToyEpisodes(12, 20, 32, 0)
    splits = split_sources(source.num_sources, 0)
    episodes = [source.episode(number) for number in range(12)]
    for episode in episodes:
        episode.actions, episode.split = None, int(splits[episode.source])
    about = source.description() | {"actions": ActionSpec("none", ()).as_dict()}
    (run / "shards").mkdir(parents=True)
    write_shard(run / "shards" / shard_name(0), episodes, about)
    assert not EpisodeDataset(run / "shards").has("actions")

    tokenizer = replace(registry.default_config("keypoints"), image_size=(32, 32), channels=16)
    train_tokenizer.main(train_tokenizer.Config(run, tokenizer, TRAIN))
    with pytest.raises(ValueError, match="holds no actions, and this method learns from them"):
        model = replace(registry.default_config("predictor"), clip_length=6)
        train_dynamics.main(train_dynamics.Config(run, model, train=TRAIN))
    (run / "dynamics").joinpath(".lock").unlink(missing_ok=True)
    train_dynamics.main(train_dynamics.Config(run, LatentActionConfig(), train=TRAIN, restart=True))
    best = ckpt.load(run / "dynamics" / "best.pt", "dynamics")
    assert best["data_actions"]["kind"] == "none" and best["actions"]["kind"] == "discrete"
    assert best["best"] == min(logged(run / "dynamics", "validation/prediction"))
    world = load_world(run)
    assert world.data_actions.kind == "none" and world.actions.size == 3
    clip = Clips(EpisodeDataset(run / "shards"), "test", 5).batch(np.arange(2))
    actions = world.actions_of(clip.frames, clip.actions)
    assert actions.shape == (2, 4) and actions.dtype == torch.int64
    state = world.reset(clip.frames[:, :1], actions[:, :0])
    assert world.decode(world.step(state, actions[:, 0])).shape == (2, 3, 32, 32)
    clips = world_clips(world, EpisodeDataset(run / "shards"), "test", 4)
    assert np.isfinite(open_loop(world, clips, (1, 2), num_clips=3)["delta_psnr"]).all()
    play.main(play.Config(run, headless=True, steps=3, size=32))
    played = np.load(run / "play" / "actions.npy")
    assert played.shape == (3,) and played.dtype == np.int64


# -- an encoder without decoder, an EMA target -----------------------------------------------


def test_an_encoder_without_decoder_is_chosen_by_its_own_metric(tmp_path, shards):
    run = a_run(tmp_path / "target", shards)
    train_tokenizer.main(train_tokenizer.Config(run, TargetConfig(), TRAIN))
    found = logged(run / "tokenizer", "validation/mrr")
    assert len(found) == 2 and not logged(run / "tokenizer", "validation/psnr")
    assert ckpt.load(run / "tokenizer" / "best.pt", "tokenizer")["best"] == max(found)
    with pytest.raises(ValueError, match="has no decoder"):
        TargetEncoder(TargetConfig()).decode(torch.zeros(1, 1, 4))


class Frames:
    """Sixteen frames of noise."""

    def __len__(self) -> int:
        return 16

    def batch(self, indices: np.ndarray) -> Batch:
        every = torch.randint(
            0, 255, (16, 1, 3, 32, 32), generator=torch.Generator().manual_seed(0)
        )
        return Batch(frames=every.to(torch.uint8)[torch.from_numpy(indices)])


ABOUT = {
    "config": {"kind": "x"}, "image_size": [32, 32], "latents": {}, "actions": {},
    "data_actions": {}, "parent": {"path": "-", "fingerprint": "0"},
}  # fmt: skip


def trained(folder: Path, model: Any, **changes: Any) -> Trainer:
    trainer = Trainer("tokenizer", folder, model, replace(TRAIN, **changes), ABOUT)
    for batch in trainer.batches(Frames()):
        trainer.step(model.loss, batch)
    trainer._lock.close()
    return trainer


@pytest.mark.parametrize("parts", [1, 4])
def test_after_step_comes_once_an_optimizer_step_however_a_batch_is_cut(tmp_path, parts):
    model = TargetEncoder(TargetConfig())
    trained(tmp_path, model, grad_accum_steps=parts)
    assert model.steps == TRAIN.steps
    moved = [not torch.equal(a, b) for a, b in zip(
        model.target.parameters(), model.encoder.parameters(), strict=True)]  # fmt: skip
    assert all(moved)


# -- weights from another run, and weights that stay -----------------------------------------


def test_a_frozen_part_is_bit_equal_after_twenty_steps_and_after_a_resume(tmp_path, shards):
    first = a_run(tmp_path / "first", shards)
    train_tokenizer.main(train_tokenizer.Config(first, TargetConfig(), TRAIN))
    given = ckpt.load(first / "tokenizer" / "best.pt", "tokenizer")["model"]
    run = a_run(tmp_path / "second", shards)
    train = replace(TRAIN, steps=20, init_from=str(first), freeze=("encoder.*",))
    train_tokenizer.main(train_tokenizer.Config(run, TargetConfig(), train))

    def check(steps: int) -> None:
        saved = last(run, "tokenizer")
        assert saved["step"] == steps
        names = [n for n in given if n.startswith("encoder.")]  # its running statistics, too
        assert names and all(torch.equal(saved["model"][n], given[n]) for n in names)
        assert not torch.equal(saved["model"]["predictor.weight"], given["predictor.weight"])
        assert not any(n.startswith("encoder.") for n in saved["ema"])
        trained = sum(len(g["params"]) for g in saved["optimizer"]["param_groups"])
        assert trained == len(saved["ema"]) == 2  # the predictor's weight and bias

    check(20)
    train_tokenizer.main(train_tokenizer.Config(run, TargetConfig(), replace(train, steps=24)))
    check(24)
    with pytest.raises(ValueError, match="was begun with freeze"):
        thawed = replace(train, steps=28, freeze=())
        train_tokenizer.main(train_tokenizer.Config(run, TargetConfig(), thawed))


def test_what_was_taken_and_what_was_left_is_printed(tmp_path, shards, capsys):
    first = a_run(tmp_path / "first", shards)
    train_tokenizer.main(train_tokenizer.Config(first, TargetConfig(), TRAIN))
    run = a_run(tmp_path / "second", shards)
    other = replace(TRAIN, init_from=str(first / "tokenizer" / "best.pt"), freeze=("encoder.0.*",))
    train_tokenizer.main(train_tokenizer.Config(run, TargetConfig(), other))
    printed = capsys.readouterr().out
    assert "init: 20 tensors from" in printed and "freeze: 2 tensors" in printed


def test_a_frozen_codebook_and_a_frozen_norm_stand_still(tmp_path):
    config = VqVaeConfig(
        (32, 32), channels=16, num_res_blocks=1, codebook_size=8, latent_dim=8, num_codebooks=1,
        vq_start_step=1,
    )  # fmt: skip
    first = trained(tmp_path / "first", VqVae(config), steps=4).model
    model = VqVae(config)
    model.load_state_dict(first.state_dict())
    before = state(model)
    trained(tmp_path / "second", model, steps=4, freeze=("quantizers.*", "encoder.*"))
    after = state(model)
    still = [n for n in before if n.startswith(("quantizers.", "encoder."))]
    assert all(torch.equal(before[n], after[n]) for n in still)
    assert not torch.equal(before["decoder.background"], after["decoder.background"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"freeze": ("encodre.*",)}, "encodre.* matches no weight; they begin with encoder"),
        ({"freeze": ("*",)}, "leaves no weight to train"),
        ({"init_from": "nowhere"}, "nowhere: there is no such file or folder"),
    ],
)
def test_patterns_and_runs_that_do_not_exist_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError) as e:
        trained(tmp_path, TargetEncoder(TargetConfig()), **changes)
    assert message.replace("*", "") in str(e.value).replace("*", "")
    assert not (tmp_path / "last.pt").exists()


# -- a step is the same however a batch is cut -----------------------------------------------


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone().float() for k, v in model.state_dict().items()}


def test_a_vqvae_takes_the_same_step_in_four_micro_batches_as_in_one(tmp_path):
    """Weights, codebooks, their sizes and the decoder's mean: to rounding (1e-5 of each)."""
    config = VqVaeConfig(
        (32, 32), channels=16, num_res_blocks=1, codebook_size=8, latent_dim=8, num_codebooks=2,
        vq_start_step=2,
    )  # fmt: skip
    found = []
    for parts in (1, 4):
        torch.manual_seed(0)
        model = VqVae(config)
        trained(tmp_path / str(parts), model, grad_accum_steps=parts, batch_size=16, steps=6)
        assert model.codebook_initialized
        found.append(state(model))
    once, cut = found
    assert (once["quantizers.0._codebook.cluster_size"] > 0).any()
    for name, value in once.items():
        scale = value.abs().max().clamp(min=1e-3)
        assert ((value - cut[name]).abs().max() / scale) < 1e-4, name


def test_an_actor_critic_moves_slow_critic_and_return_scale_once_a_step(tmp_path, monkeypatch):
    """The slow critic and the return scale after one step, in one batch and in four micro-batches.

    The policy's own gradient is not compared: its advantage subtracts the mean of the batch at
    hand, which a micro-batch cannot know.
    """
    actions = ActionSpec("continuous", ("x", "y"), (-1.0, -1.0), (1.0, 1.0))
    torch.manual_seed(0)
    joint = JointWorld(JointConfig(), (32, 32), actions)
    world = World(joint, joint)
    spec = DataSpec((32, 32), actions, world.state_spec)
    monkeypatch.setattr(  # each rollout then depends on its start alone
        "models.layers.distributions.GaussianMixture.sample", lambda self: self.mode
    )

    class Starts:
        def __len__(self) -> int:
            return 16

        def batch(self, indices: np.ndarray) -> Batch:
            rng = torch.Generator().manual_seed(0)
            latents = torch.rand(16, 2, 1, 10, generator=rng)[torch.from_numpy(indices)]
            taken = torch.rand(16, 2, 2, generator=rng)[torch.from_numpy(indices)]
            states = torch.rand(16, 1, 1, 10, generator=rng)[torch.from_numpy(indices)]
            extra = {"bc_latents": states, "bc_actions": taken[:, :1]}
            return Batch(latents=latents, actions=taken, extra=extra)

    found = []
    for parts in (1, 4):
        torch.manual_seed(0)
        config = ActorCriticConfig(PolicyConfig(hidden_dim=16, dropout=0.0), horizon=3)
        model = registry.build_controller(config, spec)
        assert isinstance(model, ActorCritic)
        train = replace(TRAIN, steps=1, batch_size=16, grad_accum_steps=parts, max_grad_norm=1e9)
        trainer = Trainer("controller", tmp_path / str(parts), model, train, ABOUT)
        for batch in trainer.batches(Starts()):
            trainer.step(model.loss, batch, world)
        trainer._lock.close()
        found.append(state(model))
    once, cut = found
    assert once["return_scale"] > 0
    kinds = ("slow_critic.", "critic.", "return_scale")
    names = [n for n in once if n.startswith(kinds) and once[n].numel()]
    for name in names:
        scale = once[name].abs().max().clamp(min=1e-3)
        assert ((once[name] - cut[name]).abs().max() / scale) < 1e-3, name
