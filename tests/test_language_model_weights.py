"""A language model's weights: where they come from, which are trained, what a checkpoint holds."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_hub import FakeHub, Repository
from torch import Tensor

from data.actions import ActionSpec
from data.batch import Batch
from models.dynamics.language_model import LanguageModelConfig, LanguageModelDynamics
from models.external_weights import weights_hash
from models.layers.transformer import TransformerConfig
from models.registry import DataSpec, build_dynamics, describe
from models.tokenizers.tokenizer import LatentSpec
from pipeline import checkpoint as ckpt
from pipeline.training.train_config import TrainConfig
from pipeline.training.trainer import Trainer

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

NAME = "maker/tiny-llama"
POINTER = ActionSpec("continuous", ("x", "y"), (-1.0, -1.0), (1.0, 1.0), pointer=True)
ONE = LatentSpec("continuous", (1, 1), 6)
DATA = DataSpec((32, 32), POINTER, ONE)
SMALL = {
    "vocab_size": 7, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 32, "pad_token_id": None,
}  # fmt: skip
TRAIN = TrainConfig(
    steps=4, batch_size=4, learning_rate=1e-2, warmup_steps=0, eval_every=2, save_every=2,
    precision="fp32",
)  # fmt: skip


def files_of(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, bytes]:
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    model.to(dtype).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(hub: FakeHub, tmp_path: Path) -> FakeHub:
    """A Hub with a language model, and a working folder."""
    hub.repositories[NAME] = Repository(private=False)
    hub.repositories[NAME].commit(files_of(tmp_path / "weights"))
    return hub


def dynamics(pretrained: str | Path, **changes: Any) -> LanguageModelDynamics:
    config = LanguageModelConfig(
        pretrained=str(pretrained), frameskip=3, clip_length=10,
        transformer=TransformerConfig(context_frames=2),
    )  # fmt: skip
    torch.manual_seed(0)
    return LanguageModelDynamics(replace(config, **changes), ONE, POINTER)


class Noise:
    """Latents and actions of eight clips."""

    def __len__(self) -> int:
        return 8

    def batch(self, indices: np.ndarray) -> Batch:
        random = torch.Generator().manual_seed(0)
        latents = torch.randn(8, 10, 1, 6, generator=random).cumsum(1)
        actions = torch.rand(8, 10, 2, generator=random)
        rewards = torch.rand(8, 10, generator=random)
        rows = torch.from_numpy(indices)
        return Batch(None, latents[rows], actions[rows], rewards[rows])


def train(folder: Path, model: LanguageModelDynamics) -> dict[str, Any]:
    """Train for a few steps; give the checkpoint."""
    root = (folder, "0")
    about = ckpt.describe(model.config, DATA, ONE, POINTER, root)
    trainer = Trainer("dynamics", folder, model, TRAIN, about)
    for batch in trainer.batches(Noise()):
        trainer.step(model.loss, batch)
        if trainer.every(2):
            trainer.save_best({"psnr": float(trainer.global_step)})
    trainer._lock.close()
    return dict(ckpt.load(folder / "best.pt", "dynamics"))


def rollout(model: LanguageModelDynamics) -> Tensor:
    batch = Noise().batch(np.arange(3))
    latents, actions = batch.require("latents", "actions")
    model.eval()
    with torch.no_grad():
        return model.rollout(model.start(latents[:, :4], actions[:, :3]), actions[:, 3:9]).latents


# -- what is trained ---------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["full", "lora", "frozen"])
def test_what_is_frozen_stays_and_the_rest_is_trained(
    tuning: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files_of(tmp_path / "weights")
    model = dynamics(tmp_path / "weights", tuning=tuning)
    base = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    own = {k: v.clone() for k, v in model.state_dict().items() if "backbone" not in k}
    checkpoint = train(tmp_path / "run", model)
    changed = {k for k, v in model.backbone.state_dict().items() if not torch.equal(v, base[k])}
    if tuning == "full":
        assert changed == base.keys()
    else:  # an adapter's first factor moves as soon as the second is not zero
        assert changed == {key for key in base if ".lora_" in key}
        assert bool(changed) == (tuning == "lora")
    still = {k for k, v in own.items() if torch.equal(v, model.state_dict()[k])}
    assert not {k for k in still if not k.startswith(("continue_head", "token_scale"))}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.backbone.parameters() if not p.requires_grad)
    assert (checkpoint["parameters"], checkpoint["frozen_parameters"]) == (trained, frozen)
    printed = capsys.readouterr().out
    whole = sum(p.numel() for p in model.backbone.parameters())
    line = f"trained parameters: backbone {whole - frozen:,} of {whole:,}, input_proj"
    assert (line in printed) == (tuning != "full")


def test_adapters_change_nothing_at_first_and_paths_stay(tmp_path: Path) -> None:
    files_of(tmp_path)
    plain, adapted = dynamics(tmp_path), dynamics(tmp_path, tuning="lora")
    for model in (plain, adapted):
        torch.manual_seed(1)
        torch.nn.init.normal_(model.delta_head.weight)
        for name in ("input_proj.weight", "action_emb.mix.weight"):
            torch.nn.init.normal_(model.get_parameter(name), std=0.1)
    adapted.load_state_dict(
        {k: v for k, v in plain.state_dict().items() if "backbone" not in k}, strict=False
    )
    assert torch.allclose(rollout(plain), rollout(adapted), atol=1e-5)
    for path in ("backbone.layers.1", "backbone.layers.1.mlp", "backbone.norm"):
        assert type(plain.get_submodule(path)) is type(adapted.get_submodule(path))


def test_dropout_of_frozen_weights_is_off(tmp_path: Path) -> None:
    """GPT-2's config has dropout, also where nothing of it is trained."""
    config = transformers.GPT2Config(vocab_size=5, n_embd=24, n_layer=2, n_head=2)
    assert config.resid_pdrop == 0.1
    transformers.GPT2Model(config).save_pretrained(tmp_path)
    for tuning, same in (("frozen", True), ("lora", True), ("full", False)):
        model = dynamics(tmp_path, tuning=tuning).train()
        torch.nn.init.normal_(model.delta_head.weight)
        batch = Noise().batch(np.arange(4))
        losses = []
        for _ in range(2):
            torch.manual_seed(3)
            torch.rand(7 * len(losses))
            losses.append(model.predict(batch.require("latents")[0][:, :3], *_actions(batch))[0])
        assert torch.equal(*losses) == same, tuning
        assert model.config.transformer.dropout == 0.1


def _actions(batch: Batch) -> tuple[Tensor, Tensor]:
    (actions,) = batch.require("actions")
    return actions[:, :9].unflatten(1, (3, 3)), torch.full((len(actions), 3), 3)


# -- what a checkpoint holds -------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["lora", "frozen"])
def test_a_checkpoint_holds_what_was_trained_and_the_name_of_the_rest(
    hub: FakeHub, tmp_path: Path, tuning: str
) -> None:
    model = dynamics(NAME, tuning=tuning)
    checkpoint = train(tmp_path / "run", model)
    held = [name for name in checkpoint["model"] if name.startswith("backbone")]
    assert all(".lora_" in name for name in held) and bool(held) == (tuning == "lora")
    config = checkpoint["config"]
    assert config["pretrained"] == NAME
    assert config["revision"] == hub.repositories[NAME].refs["main"]
    own = transformers.AutoModel.from_pretrained(tmp_path / "weights", dtype=torch.float32)
    assert config["sha256"] == weights_hash(own)
    hub.repositories[NAME].commit(files_of(tmp_path / "other", 1))  # the commit counts
    shutil.rmtree(tmp_path / "home" / "hub")
    again = ckpt.build(build_dynamics, checkpoint, tmp_path / "best.pt", DATA)
    model.load_state_dict(checkpoint["model"])  # the averaged weights
    assert torch.equal(rollout(again), rollout(model))  # type: ignore[arg-type]
    del hub.repositories[NAME]
    shutil.rmtree(tmp_path / "home" / "hub")
    with pytest.raises(ValueError, match=f"needs the weights of {NAME} at commit") as refused:
        ckpt.build(build_dynamics, checkpoint, tmp_path / "best.pt", DATA)
    assert "\n" not in str(refused.value)


def test_other_weights_at_the_commit_are_one_line(hub: FakeHub, tmp_path: Path) -> None:
    checkpoint = train(tmp_path / "run", dynamics(NAME, tuning="lora"))
    repository = hub.repositories[NAME]
    repository.commits[repository.refs["main"]] = files_of(tmp_path / "other", 1)
    shutil.rmtree(tmp_path / "home" / "hub")
    with pytest.raises(ValueError, match=rf"needs the weights of {NAME}@\w+ with SHA-256"):
        ckpt.build(build_dynamics, checkpoint, tmp_path / "best.pt", DATA)


def test_a_whole_training_holds_all_weights_and_says_where_they_began(
    hub: FakeHub, tmp_path: Path
) -> None:
    model = dynamics(NAME)
    checkpoint = train(tmp_path / "run", model)
    assert any(name.startswith("backbone.layers.1.mlp") for name in checkpoint["model"])
    assert checkpoint["config"]["revision"] == hub.repositories[NAME].refs["main"]
    hub.status = 503  # it needs nobody's weights
    again = ckpt.build(build_dynamics, checkpoint, tmp_path / "best.pt", DATA)
    model.load_state_dict(checkpoint["model"])
    assert torch.equal(rollout(again), rollout(model))  # type: ignore[arg-type]


@pytest.mark.parametrize("tuning", ["full", "lora", "frozen"])
def test_weights_of_a_folder_are_held(tmp_path: Path, tuning: str) -> None:
    files_of(tmp_path / "weights")
    model = dynamics(tmp_path / "weights", tuning=tuning)
    shutil.rmtree(tmp_path / "weights")
    again = build_dynamics(describe(model.config), DATA)
    again.load_state_dict(model.state_dict())
    torch.nn.init.ones_(model.delta_head.weight)
    torch.nn.init.ones_(again.delta_head.weight)  # type: ignore[attr-defined]
    assert torch.equal(rollout(again), rollout(model))  # type: ignore[arg-type]
    assert not model.config.sha256 and model.config.transformer.dim == 24


# -- how they are read -------------------------------------------------------------------------


def test_half_precision_files_become_float32_and_words_are_left_out(tmp_path: Path) -> None:
    files_of(tmp_path, dtype=torch.bfloat16)
    model = dynamics(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any("embed_tokens" in name for name, _ in model.named_parameters())
    words = transformers.AutoModel.from_pretrained(tmp_path).get_input_embeddings().weight
    assert float(model.token_scale) == pytest.approx(float(words.float().square().mean() ** 0.5))


def test_a_saved_backbone_is_read_again_with_its_adapters_merged(tmp_path: Path) -> None:
    files_of(tmp_path / "weights")
    model = dynamics(tmp_path / "weights", tuning="lora")
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_backbone(tmp_path / "saved")
    assert any(".lora_" in name for name in model.state_dict())  # it stays as it is
    again = dynamics(tmp_path / "saved")
    tokens = torch.randn(2, 5, 24)
    one, two = (m.backbone(inputs_embeds=tokens).last_hidden_state for m in (model, again))
    assert torch.allclose(one, two, atol=1e-5)
    assert float(again.token_scale) == pytest.approx(float(model.token_scale))
    transformers.AutoModel.from_pretrained(tmp_path / "saved")


def test_files_that_lack_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    files_of(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "mlp" in name)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="its file has no .*mlp") as refused:
        dynamics(tmp_path)
    assert "\n" not in str(refused.value)


REFUSED = {
    "bert": (
        lambda: transformers.BertConfig(
            vocab_size=5, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32,
        ),
        "is a bert, whose output at a token depends on the tokens after it",
    ),
    "mamba": (
        lambda: transformers.MambaConfig(vocab_size=5, hidden_size=24, num_hidden_layers=1),
        "is a mamba, which",
    ),
    "dinov2": (
        lambda: transformers.Dinov2Config(
            hidden_size=24, num_hidden_layers=1, num_attention_heads=2
        ),
        "is a dinov2, which",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_other_models_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    config, message = REFUSED[kind]
    transformers.AutoModel.from_config(config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message) as refused:
        dynamics(tmp_path)
    assert "\n" not in str(refused.value) and "such as llama" in str(refused.value)


def test_a_clip_that_is_longer_than_the_positions_is_refused(tmp_path: Path) -> None:
    files_of(tmp_path)
    with pytest.raises(ValueError, match="a clip is 40 tokens, and .* has 32 positions"):
        dynamics(tmp_path, clip_length=61)


def test_an_absent_folder_and_library_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="could be read from that folder .*; give --model.pretr"):
        dynamics(tmp_path / "empty")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="lora needs peft; .* -r requirements-lora.txt"):
        dynamics("random", tuning="lora")


def test_a_file_with_more_layers_than_its_config_is_refused(tmp_path: Path) -> None:
    files_of(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(ValueError, match=r"config has 1 layers, and its file 2, .*layers\.1\."):
        dynamics(tmp_path)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = transformers.LlamaModel(transformers.LlamaConfig(**SMALL))
    torch.nn.init.constant_(model.layers[1].mlp.up_proj.weight, torch.nan)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no finite numbers .*layers.1.mlp.up_proj.weight"):
        dynamics(tmp_path)


def test_a_rank_that_no_layer_has_is_refused(tmp_path: Path) -> None:
    files_of(tmp_path)
    dynamics(tmp_path, tuning="lora", lora_rank=24)
    with pytest.raises(ValueError, match="lora-rank 25 is more than the rank of any .*, 24; give"):
        dynamics(tmp_path, tuning="lora", lora_rank=25)


@pytest.mark.parametrize("text", ["{", "[1]", "{}"])
def test_a_damaged_architecture_is_one_line(text: str, tmp_path: Path) -> None:
    files_of(tmp_path / "weights")
    plain = describe(dynamics(tmp_path / "weights").config) | {"architecture": text}
    with pytest.raises(ValueError, match="the architecture in the config, .* cannot be built") as e:
        build_dynamics(plain, DATA)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_training_resumes_where_its_folder_is_gone(tuning: str, tmp_path: Path) -> None:
    files_of(tmp_path / "weights")
    model = dynamics(tmp_path / "weights", tuning=tuning)
    asked = replace(
        model.config,
        architecture="",
        family="gpt2",
        transformer=TransformerConfig(context_frames=2),
    )
    trained = train(tmp_path / "dynamics", model)
    folder = tmp_path / "dynamics"
    assert ckpt.config_to_resume(asked, folder, False) is asked  # read from the folder
    shutil.rmtree(tmp_path / "weights")
    assert ckpt.config_to_resume(asked, folder, True) is asked
    again = build_dynamics(ckpt.config_to_resume(asked, folder, False), DATA)
    assert describe(again.config) == trained["config"]
    again.load_state_dict(model.state_dict())
    assert torch.equal(rollout(again), rollout(model))  # type: ignore[arg-type]
