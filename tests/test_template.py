"""The template in docs/how-to/add-a-method.md is a method that trains."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_readme import check_python, commands

import evaluate
import models.tokenizers
import play
import preprocess
import recipes
import train_controller
import train_dynamics
import train_tokenizer
from data.toy import write_toy_shards
from models import registry
from models.controllers.controller import Controller
from models.dynamics.dynamics import Dynamics
from models.method import TrainableModule, Validates
from models.tokenizers.tokenizer import Tokenizer
from pipeline import checkpoint as ckpt
from pipeline import presets

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "add-a-method.md"
MODEL, REGISTRY, RECIPE = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
CONFIGS = {
    "preprocess_pusht": preprocess.PushTConfig,
    "tokenizer": train_tokenizer.Config,
    "dynamics": train_dynamics.Config,
    "controller": train_controller.Config,
    "play": play.Config,
    "evaluate": evaluate.Config,
}
NAMES = ("models.tokenizers.autoencoder", "recipes.autoencoder")


@pytest.fixture
def template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's blocks, as if they stood where it says."""
    for package, block in ((models.tokenizers, MODEL), (recipes, RECIPE)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "autoencoder.py").write_text(block)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    importlib.invalidate_caches()
    for name, entry in eval(f"{{{REGISTRY}}}", dict(vars(registry))).items():
        monkeypatch.setitem(registry.TOKENIZERS, name, entry)
    yield
    for name in NAMES:
        sys.modules.pop(name, None)
    for package in (models.tokenizers, recipes):
        vars(package).pop("autoencoder", None)


def test_the_template_trains_two_steps_and_is_read_back(template: None, tmp_path: Path):
    run = tmp_path / "run"
    write_toy_shards(run / "shards", episodes=6, length=8)
    config = presets.apply(train_tokenizer.Config(), "tokenizer", ["autoencoder", "debug"])
    train_tokenizer.main(
        replace(
            config,
            run=run,
            model=replace(config.model, image_size=(32, 32)),  # type: ignore[type-var]
            train=replace(config.train, steps=2, batch_size=4, eval_every=2, log_every=1),
        )
    )
    best = ckpt.load(run / "tokenizer" / "best.pt", "tokenizer")
    assert best["config"]["kind"] == "autoencoder" and best["step"] == 2
    assert best["config"]["channels"] == 16  # the recipe's size reached the model
    log = [json.loads(line) for line in (run / "tokenizer" / "log.jsonl").read_text().splitlines()]
    logged = {key for line in log for key in line}
    assert {"train/loss", "train/reconstruction", "validation/psnr"} <= logged

    path = run / "tokenizer" / "best.pt"
    tokenizer = ckpt.build(registry.build_tokenizer, best, path, ckpt.data_spec(best, path))
    frames = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8)
    latents = tokenizer.encode(frames)
    assert latents.shape == (3, tokenizer.latents.num_patches, tokenizer.latents.dim)
    assert tokenizer.decode(latents).shape == frames.shape


def test_the_recipe_of_the_template_learns_in_its_debug_size(template: None, tmp_path: Path):
    write_toy_shards(tmp_path / "shards", episodes=6, length=20, size=64)
    config = presets.apply(train_tokenizer.Config(), "tokenizer", ["autoencoder", "debug"])
    train_tokenizer.main(replace(config, run=tmp_path))
    lines = (tmp_path / "tokenizer" / "log.jsonl").read_text().splitlines()
    psnr = [log["validation/psnr"] for log in map(json.loads, lines) if "validation/psnr" in log]
    assert len(psnr) == 2 and psnr[1] > psnr[0] + 1


def test_the_recipe_of_the_template_fits_every_stage(template: None):
    for stage, config in CONFIGS.items():
        presets.apply(config(), stage, ["autoencoder", "debug"])


def test_the_commands_of_the_page_fit(
    template: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # no run remembers its presets here
    found = [shlex.split(command)[1:] for command in commands(PAGE)]
    assert [words for words in found if "autoencoder" in words]
    for words in found:
        check_python(words)


def test_every_member_of_the_contract_is_on_the_page():
    text = PAGE.read_text()
    table = text[text.index("## The contract") : text.index("## What a micro-batch")]
    inherited = set(dir(torch.nn.Module))
    for role in (TrainableModule, Validates, Tokenizer, Dynamics, Controller):
        for name in {*vars(role), *vars(role).get("__annotations__", {})} - inherited:
            if not name.startswith("_") and name != "config":
                assert re.search(rf"`[^`|]*\b{name}\b[^`|]*`", table), f"{role.__name__}.{name}"
