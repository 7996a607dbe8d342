"""What becomes of the worlds of every recipe on an exported page: played, or refused in a line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_web_export import runtime  # noqa: F401
from untrained_run import small_configs, write_run

import train_dynamics
import train_tokenizer
from data.actions import ActionSpec
from data.shards.episode_dataset import EpisodeDataset
from data.toy import KEYS, MOVES, POINTER, write_toy_shards
from models.dynamics.dynamics import Dynamics
from models.dynamics.predictor import Predictor
from models.registry import DataSpec, build_dynamics, build_tokenizer, dynamics_class
from models.tokenizers.tokenizer import Tokenizer
from models.world import World
from pipeline import presets
from pipeline.export import runtime_files, web
from pipeline.export.graphs import to_onnx, world_graphs
from pipeline.export.page_starts import page_starts
from pipeline.export.parity import Differences, compare

PAGE = "page"
WORLDS = {
    # presets before `debug`, the actions of the data -> what is said, or PAGE
    "pusht": (("pusht",), POINTER, PAGE),
    "keypoints": (("keypoints",), POINTER, PAGE),
    "autoregressive": (("pusht", "autoregressive"), POINTER, "predicts its codes one by one"),
    "minecraft": (("minecraft",), KEYS, "and the page has 9 buttons"),
    "lewm": (("lewm",), POINTER, PAGE),
    "dreamer": (("dreamer",), MOVES, "has states that no single frame gives"),
    "rssm": (("pusht", "rssm"), POINTER, "has states that no single frame gives"),
    "genie": (("genie",), POINTER, "has latent actions"),
    "maskgit": (("genie", "maskgit"), POINTER, "encodes frames with their past"),
    "iwm": (("iwm",), POINTER, "has the dynamics IwmDynamics, whose steps"),
    "iwm_actions": (("iwm_actions",), POINTER, "has the dynamics IwmDynamics, whose steps"),
    "flexible": (("flexible",), POINTER, "has the dynamics LanguageModelDynamics, whose steps"),
}
# worlds of these kinds are played in test_web_codes.py and test_web_export.py
PLAYED_ELSEWHERE = {"pusht": "vqvae", "keypoints": "keypoints"}
NO_WORLD_OF_THEIR_OWN = {
    "atari": "data for another recipe",
    "loop": "rounds of another recipe",
    "value_gradients": "a controller behind keypoints",
    "vae": "a tokenizer behind another recipe",
    "dinov2": "its encoder is downloaded",
}


def untrained(names: tuple[str, ...], actions: ActionSpec) -> World:
    data = DataSpec((64, 64), actions)
    dynamics = presets.apply(train_dynamics.Config(), "dynamics", (*names, "debug"))
    if issubclass(dynamics_class(dynamics.model), Tokenizer):
        joint = build_dynamics(dynamics.model, data)
        assert isinstance(joint, Tokenizer)
        return World(joint, joint)
    given = presets.apply(train_tokenizer.Config(), "tokenizer", (*names, "debug"))
    tokenizer = build_tokenizer(given.model, data)
    model = build_dynamics(dynamics.model, replace(data, latents=tokenizer.latents))
    return World(tokenizer, model, data_actions=actions)


def test_every_recipe_is_listed():
    assert {*WORLDS, *NO_WORLD_OF_THEIR_OWN} == set(presets.recipe_names())


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_shards(tmp_path_factory.mktemp("run") / "shards", episodes=12, size=64)


def compute_alike(world: World, shards: Path) -> None:
    """The graphs of its page compute what PyTorch does."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="requirements-web.txt is not installed")
    starts = page_starts(world, EpisodeDataset(shards), 1, 8, 0)
    graphs = {g.name: to_onnx(g, False) for g in world_graphs(world, None, starts[0].packed)}
    compare(world, None, graphs, starts).check()


@pytest.mark.parametrize("recipe", WORLDS)
def test_a_world_of_a_recipe_is_played_or_refused_in_a_line(recipe: str, shards: Path):
    names, actions, said = WORLDS[recipe]
    world = untrained(names, actions)
    if said == PAGE:
        web.check_world(world, Path("runs/mine"))
        if recipe in PLAYED_ELSEWHERE:
            played = small_configs(PLAYED_ELSEWHERE[recipe], (64, 64))
            assert [type(one.config) for one in (world.tokenizer, world.dynamics)] == [
                type(config) for config in played
            ]
        else:
            compute_alike(world, shards)
        return
    with pytest.raises(ValueError, match=said) as refused:
        web.check_world(world, Path("runs/mine"))
    line = str(refused.value)
    assert "\n" not in line and line.startswith("runs/mine ")
    assert line.endswith("play.py --browser plays it from a server")


def test_what_the_page_cannot_play_or_lacks_is_refused_before_anything_is_written(
    runtime: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """A world that no page plays is refused where nothing is installed for pages, too."""
    monkeypatch.setattr(runtime_files, "find_spec", lambda name: None)
    for name, factored in (("keys", True), ("pointer", False)):
        write_toy_shards(tmp_path / name / "shards", episodes=6, factored=factored)
        write_run(tmp_path / name, EpisodeDataset(tmp_path / name / "shards"))
    keys, pointer = (web.Config(tmp_path / name, tmp_path / "page") for name in ("keys", "pointer"))
    for config, said in (
        (keys, "actions, and the page has 9 buttons.*play.py --browser"),
        (replace(pointer, runtime=tmp_path), "npm install --no-save onnxruntime-web@"),
        (replace(pointer, runtime=runtime), "needs onnx, .*pip install -r requirements-web.txt"),
    ):
        with pytest.raises(ValueError, match=said):
            web.main(config)
    assert not (tmp_path / "page").exists()


def test_dynamics_without_a_step_for_the_page_are_refused(monkeypatch: pytest.MonkeyPatch):
    world = untrained(("keypoints",), POINTER)
    web.check_world(world, Path("runs/mine"))
    monkeypatch.setattr(Predictor, "step_packed", Dynamics.step_packed)
    with pytest.raises(ValueError, match=r"dynamics Predictor, .*--preset keypoints.*--browser"):
        web.check_world(world, Path("runs/mine"))


def test_other_numbers_are_no_parity():
    for name, value in (("latents", 2e-3), ("reward", float("nan")), ("frame_levels", 2.0)):
        with pytest.raises(ValueError, match=f"exported {name} is .* off PyTorch's"):
            Differences(**{name: value}).check()
    found = Differences()
    found.note("latents", np.array([np.nan, 0.0]), torch.zeros(2))
    found.note("latents", np.zeros(2), torch.zeros(2))
    assert np.isnan(found.latents)
