"""Genie: latent actions and dynamics together or in turn, and the stages as a user runs them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import evaluate
import play
import train_dynamics
import train_tokenizer
from data.batch import Batch
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from evaluation.simulator_jobs import keypoint_distance
from models.dynamics.genie import Genie, GenieConfig
from models.dynamics.latent_actions import LatentActionConfig, shortened
from models.dynamics.maskgit import MaskGit
from models.layers.transformer import TransformerConfig
from models.tokenizers.tokenizer import LatentSpec
from pipeline import checkpoint as ckpt
from pipeline import presets
from pipeline.inference.load_world import load_world

SPEC = LatentSpec("discrete", (2, 2), dim=4, codebook_size=7, num_codebooks=2)
CONFIG = GenieConfig(
    TransformerConfig(dim=16, num_layers=1, num_heads=2, mlp_dim=32, context_frames=3),
    clip_length=4,
    latent_actions=LatentActionConfig(
        num_actions=4, dim=2, channels=8, num_layers=1, vq_start_step=2
    ),
)


class Books:
    codebooks = torch.randn(2, 7, 2, generator=torch.Generator().manual_seed(0))


def a_model(**changes: Any) -> Genie:
    torch.manual_seed(0)
    model = Genie(replace(CONFIG, **changes), SPEC, (16, 16))
    model.load_codebook(Books())
    return model.train()


def a_batch() -> Batch:
    torch.manual_seed(1)
    frames = torch.randint(0, 256, (8, 4, 3, 16, 16), dtype=torch.uint8)
    return Batch(frames=frames, latents=torch.randint(0, 7, (8, 4, 8)))


def trained(model: Genie, steps: int) -> list[dict[str, Tensor]]:
    optimizer = torch.optim.AdamW(model.param_groups(), 1e-2, weight_decay=0.1)
    found = []
    for _ in range(steps):
        losses = model.loss(a_batch())
        optimizer.zero_grad(set_to_none=True)
        sum((v for v in losses.values() if v.requires_grad), torch.zeros(())).backward()
        optimizer.step()
        with torch.no_grad():
            model.after_step()
        found.append(losses)
    return found


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def moved(before: dict[str, Tensor], module: torch.nn.Module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not before[name].equal(value)}


def test_the_dynamics_turn_begins_with_a_schedule_of_its_own():
    alone = replace(CONFIG, latent_action_steps=5)
    assert Genie(alone, SPEC, (16, 16)).turns == (5,)
    assert Genie(CONFIG, SPEC, (16, 16)).turns == ()


def test_together_both_learn_in_each_step():
    model = a_model()
    before = weights(model)
    for losses in trained(model, 3):
        assert {"cross_entropy", "action_error"} <= losses.keys()
    names = moved(before, model)
    assert "latent_actions.encoder.out.weight" in names and "pos_emb" in names


def test_in_turn_the_actions_learn_first_and_then_stay_as_they_are():
    model = a_model(latent_action_steps=3)
    before = weights(model)
    first = trained(model, 3)
    assert all("cross_entropy" not in losses for losses in first)
    assert all(name.startswith("latent_actions.") for name in moved(before, model))
    assert model.capturable
    before = weights(model)
    then = trained(model, 2)
    assert all("action_error" not in losses for losses in then)
    names = moved(before, model)
    assert names and not any(name.startswith("latent_actions.") for name in names)


def test_dynamics_send_no_gradient_to_the_actions():
    model = a_model()
    trained(model, 3)
    model.zero_grad()
    model.loss(a_batch())["cross_entropy"].backward()
    assert all(p.grad is None for p in model.latent_actions.parameters())
    assert model.pos_emb.grad is not None


def test_inferred_actions_are_the_codes_of_their_vectors():
    model = a_model()
    trained(model, 3)
    (frames,) = a_batch().require("frames")
    with torch.no_grad():
        vectors, codes = model.latent_action_vectors(frames), model.infer_actions(frames)
    assert vectors.shape == (8, 3, 2) and codes.shape == (8, 3) and codes.dtype == torch.int64
    short = shortened(vectors, model.config.latent_actions.linear_length)
    nearest = torch.cdist(short, model.latent_actions.codebook).argmin(-1)
    assert torch.equal(nearest[:, 0], codes[:, 0])  # nothing is carried to the first
    assert model.actions.size == 4 and model.actions.kind == "discrete"


# -- the stages on the toy world ------------------------------------------------------------------


def config(stage: Any, name: str, run: Path, *names: str, **changes: Any) -> Any:
    made = replace(presets.apply(stage.Config(), name, ["genie", "debug", *names]), run=run)
    return replace(made, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "genie"
    write_toy_shards(folder / "shards", episodes=18, length=40)
    made = config(train_tokenizer, "tokenizer", folder)
    train = replace(made.train, steps=10, eval_every=10)
    train_tokenizer.main(replace(made, model=replace(made.model, image_size=(32, 32)), train=train))
    made = config(train_dynamics, "dynamics", folder)
    actions = replace(made.model.latent_actions, vq_start_step=3)
    model = replace(made.model, latent_actions=actions, latent_action_steps=6)
    train_dynamics.main(
        replace(made, model=model, train=replace(made.train, steps=12, eval_every=6))
    )
    return folder


def test_the_stages_leave_a_world_of_latent_actions(run: Path):
    world = load_world(run, "cpu")
    assert world.infers_actions and world.actions.size == 8
    assert world.data_actions == EpisodeDataset(run / "shards").actions
    log = [json.loads(line) for line in (run / "dynamics" / "log.jsonl").read_text().splitlines()]
    keys = {key for line in log for key in line}
    assert {"train/action_perplexity", "train/action_gain", "validation/delta_psnr_4"} <= keys
    tokens = [json.loads(x) for x in (run / "tokenizer" / "log.jsonl").read_text().splitlines()]
    assert {"validation/psnr", "validation/code_flip_rate", "validation/patch_change_rate",
            "validation/codes_used"} <= {key for line in tokens for key in line}  # fmt: skip


@pytest.mark.parametrize("alone", [0, 4])
def test_training_on_after_a_stop_equals_no_stop(run: Path, tmp_path: Path, alone: int):
    """Also where the stop is in the steps of the latent actions alone."""
    found = []
    for name, parts in (("whole", (6,)), ("parts", (3, 6))):
        folder = tmp_path / name
        folder.mkdir()
        for part in ("shards", "tokenizer"):
            (folder / part).symlink_to(run / part)
        for steps in parts:
            made = config(train_dynamics, "dynamics", folder)
            train = replace(
                made.train, steps=steps, eval_every=6, save_every=1, schedule="constant"
            )
            model = replace(made.model, latent_action_steps=alone)
            train_dynamics.main(replace(made, model=model, train=train))
        found.append(ckpt.load(folder / "dynamics" / "last.pt", "dynamics")["model"])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_it_is_played_without_a_window(run: Path):
    for actions in ("dataset", "random"):
        made = config(play, "play", run, headless=True, actions=actions, steps=6)
        play.main(made)
    assert list((run / "play").iterdir())


def test_it_is_evaluated(run: Path):
    evaluate.main(config(evaluate, "evaluate", run))
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    assert metrics["open_loop"]["delta_psnr"]


def test_its_states_are_compared_by_the_keypoints_of_another_run(run: Path, tmp_path: Path):
    (tmp_path / "shards").symlink_to(run / "shards")
    made = replace(
        presets.apply(train_tokenizer.Config(), "tokenizer", ["keypoints", "debug"]), run=tmp_path
    )
    model = replace(made.model, image_size=(32, 32))
    train = replace(made.train, steps=2, eval_every=2)
    train_tokenizer.main(replace(made, model=model, train=train))
    world = load_world(run, "cpu")
    distance = keypoint_distance(world, tmp_path)
    frames = EpisodeDataset(run / "shards").read(0, "frames", 0, 3)
    latents = world.encode(torch.from_numpy(frames).movedim(-1, 1))
    tracked = distance.start(latents)
    assert tracked.shape[0] == 3 and tracked.shape[2] == 2
    assert distance.cost(tracked, tracked).eq(0).all()
    with pytest.raises(ValueError, match="its tokenizer is StVivit; give a run"):
        keypoint_distance(world, run)


def test_the_same_dynamics_learn_from_the_datas_own_actions(run: Path, tmp_path: Path):
    for part in ("shards", "tokenizer"):
        (tmp_path / part).symlink_to(run / part)
    made = config(train_dynamics, "dynamics", tmp_path, "maskgit", "debug")
    train_dynamics.main(replace(made, train=replace(made.train, steps=4, eval_every=4)))
    world = load_world(tmp_path, "cpu")
    assert type(world.dynamics) is MaskGit and not world.infers_actions
    with pytest.raises(ValueError, match="only a search over latent codes compares keypoints"):
        evaluate.main(config(evaluate, "evaluate", tmp_path, keypoints="runs/points"))


def test_keypoints_that_no_search_compares_are_refused(run: Path):
    with pytest.raises(ValueError, match="--keypoints runs/points: codes are searched on Push-T"):
        evaluate.main(config(evaluate, "evaluate", run, keypoints="runs/points"))
