"""Every stage and every method on a device that is not the CPU, and that has no float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_accelerator import DEVICE, fake_accelerator, is_there
from untrained_run import write_run

import evaluate
import play
import train_controller
import train_dynamics
import train_tokenizer
from data.shards.episode_dataset import EpisodeDataset
from data.toy import write_toy_shards
from evaluation.measures.key_metrics import correlation
from evaluation.protocols.mpc import LastActionProbe
from models import registry
from models.layers.sigreg import effective_rank
from models.planning.planner import PlannerConfig
from pipeline import presets
from pipeline.device import pick_device, set_device
from pipeline.inference.load_world import load_world
from recipes import pusht

SHORT = {"steps": 2, "batch_size": 4, "eval_every": 2, "save_every": 2, "warmup_steps": 1}
SMALL = {  # of a stage, where its method has it
    "dynamics": {"model.transformer.num_layers": 1},
    "controller": {
        "model.horizon": 2,
        "goal_policy.max_goal_offset": 5,
        "goal_policy.num_samples": 2,
    },
}
RECIPES = {  # with the sources of actions that its world has; the quickest at the front
    "dreamer": ("actor_critic", "planner"),
    "pusht": ("dataset", "actor_critic"),
    "keypoints": ("goal_policy", "policy_prior"),
    "lewm": ("planner",),
    "minecraft": ("random", "goal_policy"),
    "dinov2": ("dataset",),
    "iwm": ("dataset",),
    "iwm_actions": ("planner",),
    "genie": ("dataset",),
    "flexible": ("planner",),
}


EVALUATED = ("pusht", "keypoints", "minecraft")  # these have all parts of an evaluation


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with fake_accelerator(monkeypatch):
        yield
    set_device("auto")


def config(stage: Any, key: str, run: Path) -> Any:
    """A stage's config for the toy world, as small as it gets."""
    if run.name == "minecraft":  # its own debug size takes minutes
        made = presets.apply(stage.Config(), key, [run.name])
        made = presets.changed(made, _fitting(made, pusht.SIZES["debug"][key]), "debug")
    else:
        made = presets.apply(stage.Config(), key, [run.name, "debug"])
    made = replace(made, run=run)
    if key == "evaluate":
        made = replace(made, num_clips=4, num_videos=0, horizons=(1, 2), play_frames=4)
    for name in ("train", "bc", "goal_policy_train"):
        if hasattr(made, name):
            made = presets.changed(made, {f"{name}.{k}": v for k, v in SHORT.items()}, "short")
    if key == "tokenizer":
        made = presets.changed(made, {"model.image_size": (32, 32)}, "toy")
    if run.name == "dinov2" and key == "tokenizer":
        made = presets.changed(made, {"model.pretrained": str(run / "backbone")}, "toy")
    if run.name == "minecraft" and key == "dynamics":
        off = {"model.transformer.activation_checkpointing": False}
        made = presets.changed(made, off, "toy")
    return presets.changed(made, _fitting(made, SMALL.get(key, {})), "toy")


def _fitting(made: Any, size: dict[str, Any]) -> dict[str, Any]:
    """What a method has of the sizes of another one."""

    def has(value: Any, names: list[str]) -> bool:
        return not names or (hasattr(value, names[0]) and has(getattr(value, names[0]), names[1:]))

    return {name: value for name, value in size.items() if has(made, name.split("."))}


def write_backbone(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tiny = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=56
    )
    transformers.Dinov2Model(tiny).save_pretrained(folder)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_stage_runs_where_there_is_no_float64(
    recipe: str, tmp_path: Path, accelerator: None, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / recipe
    write_toy_shards(run / "shards", episodes=18, length=16, factored=recipe == "minecraft")
    if recipe == "dinov2":
        write_backbone(run / "backbone")
    capsys.readouterr()
    stages = ("dynamics", "play") if recipe == "dreamer" else ("tokenizer", "dynamics", "play")
    if "tokenizer" in stages:
        train_tokenizer.main(config(train_tokenizer, "tokenizer", run))
    train_dynamics.main(config(train_dynamics, "dynamics", run))
    # dinov2's controllers are those of keypoints; a world of latent actions has none
    if recipe not in ("dinov2", "genie"):
        train_controller.main(config(train_controller, "controller", run))
    if recipe in EVALUATED:
        evaluate.main(config(evaluate, "evaluate", run))
    small = PlannerConfig(num_samples=4, iterations=2, num_elites=2)
    shown = play.Config(run, headless=True, steps=2, size=32, goal_offset=5, planner=small)
    for source in RECIPES[recipe]:
        play.main(replace(shown, actions=source))  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    for stage in stages:
        assert f"{stage}: mps" in printed


def test_the_recipes_above_hold_every_registered_method():
    methods = registry.TOKENIZERS | registry.DYNAMICS | registry.CONTROLLERS
    by_config = {method()[0]: name for name, method in methods.items()}
    found: set[str] = set()

    def look(value: Any) -> None:
        if is_dataclass(value):
            found.update(name for kind, name in by_config.items() if type(value) is kind)
            for each in fields(value):
                look(getattr(value, each.name))

    for recipe in (
        *([name] for name in RECIPES),
        ["keypoints", "rssm"],
        ["genie", "maskgit"],
        ["flexible", "vae"],
    ):
        for stage, key in ((train_tokenizer, "tokenizer"), (train_dynamics, "dynamics"),
                           (train_controller, "controller")):  # fmt: skip
            if recipe != ["dreamer"] or key != "tokenizer":  # it has no stage 2
                look(presets.apply(stage.Config(), key, recipe))
    assert found == set(methods)


def test_measures_in_float64_are_taken_of_tensors_from_there(accelerator: None):
    here = torch.rand(64, 5, generator=torch.Generator().manual_seed(0))
    there = here.to(DEVICE)
    assert is_there(there) and not is_there(there.cpu())
    with pytest.raises(TypeError, match="float64"):
        there.double()
    assert effective_rank(there) == effective_rank(here)
    assert correlation(there[:, 0], there[:, 1]) == correlation(here[:, 0], here[:, 1])


def test_the_last_action_is_read_of_latents_from_there(tmp_path: Path, accelerator: None):
    dataset = EpisodeDataset(write_toy_shards(tmp_path / "shards", episodes=6))
    world = load_world(write_run(tmp_path, dataset, controllers=False, method="keypoints"))
    assert world.device == pick_device() == DEVICE
    frames = torch.from_numpy(dataset.read(0, "frames")[:4]).permute(0, 3, 1, 2)
    latents = world.embed(frames.to(world.device))
    actions = LastActionProbe(world, dataset, num_clips=20)(latents)
    assert actions.shape == (4, 2) and is_there(actions) and actions.dtype == torch.float32


def test_tensors_of_two_devices_do_not_mix(accelerator: None):
    there = torch.ones(3).to(DEVICE)
    assert is_there(there + 1) and is_there(there * torch.tensor(2.0))
    with pytest.raises(RuntimeError, match="two devices"):
        _ = there + torch.ones(3)
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
