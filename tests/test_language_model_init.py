"""Weights of another run for a language model, with adapters and without."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.actions import ActionSpec
from models.dynamics.language_model import LanguageModelConfig, LanguageModelDynamics
from models.layers.transformer import TransformerConfig
from models.registry import DataSpec
from models.tokenizers.tokenizer import LatentSpec
from pipeline import checkpoint as ckpt
from pipeline.training.init_from import Taken, init_from
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Trainer

pytest.importorskip("transformers")
pytest.importorskip("peft")

POINTER = ActionSpec("continuous", ("x", "y"), (-1.0, -1.0), (1.0, 1.0), pointer=True)
ONE = LatentSpec("continuous", (1, 1), 6)
DATA = DataSpec((32, 32), POINTER, ONE)
TINY = TransformerConfig(dim=24, num_layers=2, num_heads=2, mlp_dim=32, context_frames=2)
CONFIG = LanguageModelConfig(transformer=TINY, frameskip=3, clip_length=10)
HUB = {"pretrained": "maker/tiny", "revision": "c0ffee" * 6, "sha256": "a" * 64}


def dynamics(seed: int = 0, **changes: Any) -> LanguageModelDynamics:
    torch.manual_seed(seed)
    return LanguageModelDynamics(replace(CONFIG, **changes), ONE, POINTER).eval()


def trained(seed: int = 1, **changes: Any) -> LanguageModelDynamics:
    """A model of which no weight is as it began."""
    model = dynamics(seed, **changes)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    return model


def take(
    monkeypatch: pytest.MonkeyPatch, into: LanguageModelDynamics, source: LanguageModelDynamics
) -> Taken:
    checkpoint = {
        "model": source.state_dict(), "config": asdict(source.config), "actions": None,
        "fingerprint": "0",
    }  # fmt: skip
    monkeypatch.setattr(ckpt, "load", lambda *_: checkpoint)
    return init_from(into, __file__, Path("dynamics"), "dynamics")[0]


def output(model: LanguageModelDynamics) -> Tensor:
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 10, 1, 6, generator=random)
    actions = torch.rand(3, 10, 2, generator=random)
    with torch.no_grad():
        return model.rollout(model.start(latents[:, :4], actions[:, :3]), actions[:, 3:9]).latents


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("there", ["full", "lora", "frozen"])
@pytest.mark.parametrize("here", ["full", "lora", "frozen"])
def test_the_whole_language_model_is_taken(
    monkeypatch: pytest.MonkeyPatch, family: str, there: str, here: str
) -> None:
    source = trained(family=family, tuning=there)
    into = dynamics(family=family, tuning=here)
    assert not torch.allclose(output(into), output(source), atol=1e-2)
    told = take(monkeypatch, into, source)
    assert torch.allclose(output(into), output(source), atol=1e-5)
    new = [name for names in told.left.values() for name in names]
    assert all(".lora_" in name for name in new)
    assert bool(new) == (here == "lora" and there != "lora")
    merges = there == "lora" and here != "lora"
    line = "init: adapters of rank 8 are merged into the weights that they adapt"
    assert (line in told.describe()) == merges
    assert not into.remarks()


@pytest.mark.parametrize("changes", [{"lora_rank": 4}, {"lora_alpha": 3.0}])
def test_adapters_of_another_rank_or_alpha_are_merged(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    source, into = trained(tuning="lora"), dynamics(tuning="lora", **changes)
    for name, weight in into.named_parameters():
        if ".lora_B" in name:
            assert not weight.any()
    told = take(monkeypatch, into, source)
    assert told.changed and torch.allclose(output(into), output(source), atol=1e-5)


@pytest.mark.parametrize("tuning", ["full", "lora", "frozen"])
def test_an_untrained_language_model_that_stays_is_told(
    monkeypatch: pytest.MonkeyPatch, tuning: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    into = dynamics(tuning=tuning)
    take(monkeypatch, into, trained(family="gpt2"))  # projections alone
    about = ckpt.describe(into.config, DATA, ONE, POINTER, (tmp_path, "0"))
    Trainer("dynamics", tmp_path, into, TrainConfig(steps=2), about)
    line = f"language model: --model.tuning {tuning} leaves an untrained one as it is"
    assert (line in capsys.readouterr().out) == (tuning != "full")


class Named(LanguageModelDynamics):
    """Weights that a checkpoint names: those of the hub, for whoever has none."""

    def __init__(self, **changes: Any) -> None:
        torch.manual_seed(5)
        super().__init__(replace(CONFIG, **changes), ONE, POINTER)
        self.config = replace(self.config, **HUB)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state = super().state_dict(*args, **kwargs)
        if not self.config.names_weights:
            return state
        return {k: v for k, v in state.items() if "backbone." not in k or ".lora_" in k}


def test_adapters_of_named_weights_are_merged_into_the_same_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, into = Named(tuning="lora"), Named(tuning="full")
    for name, weight in source.named_parameters():
        if ".lora_" in name or "backbone" not in name:
            weight.data += 0.1 * torch.randn_like(weight)
    take(monkeypatch, into, source)
    assert torch.allclose(output(into.eval()), output(source.eval()), atol=1e-5)


@pytest.mark.parametrize(
    ("into", "source", "message"),
    [
        (dynamics, {"tuning": "lora"}, "it only names its language model, maker/tiny at c0ffeec0"),
        (Named, None, "it holds a language model, and with --model.tuning lora that of"),
        (Named, {"tuning": "lora", "lora_rank": 4}, "its adapters have rank 4 and alpha 16"),
    ],
)
def test_weights_that_cannot_be_had_are_one_line(
    monkeypatch: pytest.MonkeyPatch, into: Any, source: Any, message: str
) -> None:
    other = trained() if source is None else Named(**source)
    with pytest.raises(ValueError, match=message) as refused:
        take(monkeypatch, into(tuning="lora"), other)
    said = str(refused.value)
    assert said.startswith("--train.init-from") and "save_backbone" in said and "\n" not in said


@pytest.mark.parametrize("tuning", ["lora", "frozen"])
def test_a_language_model_of_a_folder_that_stays_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, tuning: str, tmp_path: Path
) -> None:
    trained(1).save_backbone(tmp_path / "one")
    trained(2).save_backbone(tmp_path / "two")
    one, two = {"pretrained": str(tmp_path / "one")}, {"pretrained": str(tmp_path / "two")}
    source = dynamics(3, tuning=tuning, **one)
    take(monkeypatch, dynamics(4, tuning=tuning, **one), source)
    take(monkeypatch, dynamics(4, tuning="full", **two), source)
    into = dynamics(4, tuning=tuning, **two)
    before = {k: v.clone() for k, v in into.state_dict().items()}
    with pytest.raises(ValueError, match=f"it holds a language model, .*--model.tuning {tuning}"):
        take(monkeypatch, into, source)
    assert all(torch.equal(before[k], v) for k, v in into.state_dict().items())
