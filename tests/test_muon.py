"""Muon: orthogonal steps of layers, as PyTorch's own takes them, and AdamW for the rest."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import train_tokenizer
from data.toy import write_toy_shards
from models.layers.precision import Precision
from models.tokenizers.keypoints import Keypoints, KeypointsConfig
from pipeline import checkpoint as ckpt
from pipeline.training import fsdp
from pipeline.training.muon import Muon, layer_weights, muon_for, orthogonal
from pipeline.training.nan_guard import NanGuard
from pipeline.training.train_config import TrainConfig
from pipeline.training.train_step import TrainStep

SETTINGS: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(32, 24))
        self.table = nn.Embedding(20, 32)
        self.first, self.second = nn.Linear(24, 32), nn.Linear(24, 32)
        self.thin = nn.Linear(24, 4)
        self.conv = nn.Conv2d(16, 24, 3)

    def backward(self, seed: int) -> None:
        torch.manual_seed(seed)
        for weight in self.parameters():
            weight.grad = torch.empty_like(weight).copy_(torch.randn(weight.shape))


def muon(model: nn.Module) -> Muon:
    return Muon(model.parameters(), layer_weights(model), **SETTINGS)


def test_weights_of_layers_are_taken_but_for_thin_ones():
    model = Small()
    model.second.weight.requires_grad_(False)
    wanted = [model.first.weight, model.conv.weight]
    assert [id(weight) for weight in layer_weights(model)] == [id(weight) for weight in wanted]


@pytest.mark.parametrize("shape", [(3, 16, 64), (3, 64, 16), (1, 40, 40)])
def test_singular_values_end_near_one_and_directions_stay(shape: tuple[int, ...]):
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.tensor([1e-4, 1.0, 1e4])[: shape[0], None, None]
    u, values, v = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonal(matrices)
    turned = u.mT @ found @ v.mT  # diagonal, if the directions are those of before
    diagonal = turned.diagonal(dim1=1, dim2=2)
    kept = values > 0.02 * values[:, :1]  # smaller ones need more iterations
    assert (diagonal[kept] > 0.5).all() and (diagonal[kept] < 1.25).all()
    torch.testing.assert_close(turned - torch.diag_embed(diagonal), 0 * turned, atol=1e-3, rtol=0)


def test_in_bf16_matrices_are_nearly_as_orthogonal():
    torch.manual_seed(0)
    matrices = torch.randn(2, 32, 96) * torch.tensor([1e-6, 1e6])[:, None, None]
    found = orthogonal(matrices, torch.bfloat16)
    assert found.dtype == torch.float32
    exact = orthogonal(matrices)
    difference = (found - exact).norm(dim=(1, 2)) / exact.norm(dim=(1, 2))
    assert (difference > 0).all() and (difference < 0.06).all()


def test_products_of_the_optimizer_have_the_precision_of_the_training():
    wanted: dict[Precision, torch.dtype] = {
        "bf16": torch.bfloat16, "fp16": torch.float32, "fp32": torch.float32
    }  # fmt: skip
    for precision, dtype in wanted.items():
        optimizer = muon_for(Small(), False, precision, "train")(Small().parameters())
        assert optimizer._dtype == dtype


def test_a_gradient_of_zeros_gives_a_step_of_zeros():
    assert torch.equal(orthogonal(torch.zeros(1, 16, 20)), torch.zeros(1, 16, 20))


def test_a_weight_stands_still_once_it_has_no_gradient():
    """As weights have none whose turn is over, among several processes."""
    model = Small()
    settings: dict[str, Any] = SETTINGS | {"weight_decay": 0.0}
    optimizer = Muon(model.parameters(), layer_weights(model), **settings)
    model.backward(0)
    optimizer.step()
    before = model.first.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        model.first.weight.grad = torch.zeros_like(model.first.weight)
        optimizer.step()
    assert torch.equal(model.first.weight, before)


def test_matrices_move_as_with_pytorchs_muon_and_the_rest_as_with_adamw():
    model = Small()
    plain, theirs = copy.deepcopy(model), copy.deepcopy(model)
    ours, adamw = muon(model), torch.optim.AdamW(plain.parameters(), **SETTINGS)
    reference = torch.optim.Muon(
        [theirs.first.weight, theirs.second.weight],
        lr=SETTINGS["lr"],
        weight_decay=SETTINGS["weight_decay"],
        adjust_lr_fn="match_rms_adamw",
    )
    before = model.first.weight.detach().clone()
    for step in range(4):
        for each, optimizer in ((model, ours), (plain, adamw), (theirs, reference)):
            each.backward(step)
            optimizer.step()
    for name in ("first", "second"):
        moved = getattr(model, name).weight - getattr(theirs, name).weight
        # theirs are products in bf16
        assert moved.abs().max() < 0.05 * (model.first.weight - before).abs().max()
    for name in ("position", "table.weight", "first.bias", "thin.weight", "conv.bias"):
        torch.testing.assert_close(model.get_parameter(name), plain.get_parameter(name))
    assert not torch.allclose(model.conv.weight, plain.conv.weight)


def test_a_convolution_moves_alike_however_it_lies_in_memory():
    first, last = Small(), Small()
    last.load_state_dict(first.state_dict())
    last.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for model in (first, last):
        optimizer = muon(model)
        for step in range(3):
            model.backward(step)
            optimizer.step()
    torch.testing.assert_close(first.conv.weight, last.conv.weight, atol=1e-6, rtol=1e-5)


def test_a_resumed_optimizer_goes_on_as_if_it_had_not_ended():
    whole, part = Small(), Small()
    part.load_state_dict(whole.state_dict())
    optimizer, first = muon(whole), muon(part)
    for step in range(4):
        whole.backward(step)
        optimizer.step()
        if step == 2:
            second = muon(part)
            second.load_state_dict(first.state_dict())
            first = second
        part.backward(step)
        first.step()
    for name, weight in whole.named_parameters():
        assert torch.equal(weight, part.get_parameter(name)), name


def test_a_captured_learning_rate_is_a_tensor():
    first, second = Small(), Small()
    second.load_state_dict(first.state_dict())
    numbers, tensors = muon(first), muon(second)
    for group in tensors.param_groups:
        group["lr"] = torch.tensor(SETTINGS["lr"])
    for model, optimizer in ((first, numbers), (second, tensors)):
        model.backward(0)
        optimizer.step()
    torch.testing.assert_close(first.conv.weight, second.conv.weight)


# -- in a training ---------------------------------------------------------------------------

KEYPOINTS = KeypointsConfig((32, 32), num_keypoints=4, channels=16, num_res_blocks=1)
TRAIN = TrainConfig(
    steps=6, batch_size=8, warmup_steps=1, eval_every=3, save_every=3, optimizer="muon"
)


def tokenizer(run: Path, shards: Path, train: TrainConfig) -> dict[str, Any]:
    """Train one, and give its last checkpoint."""
    run.mkdir(exist_ok=True)
    if not (run / "shards").exists():
        (run / "shards").symlink_to(shards)
    train_tokenizer.main(train_tokenizer.Config(run, KEYPOINTS, train))
    return ckpt.load(run / "tokenizer" / "last.pt", "tokenizer")


def test_a_training_resumes_bit_for_bit_and_with_its_own_optimizer_alone(tmp_path: Path):
    shards = write_toy_shards(tmp_path / "shards", episodes=12, length=30)
    constant = replace(TRAIN, schedule="constant")  # a cosine depends on the number of steps
    whole = tokenizer(tmp_path / "whole", shards, constant)
    half = tokenizer(tmp_path / "half", shards, replace(constant, steps=3))
    resumed = tokenizer(tmp_path / "half", shards, constant)
    assert half["step"] == 3 and resumed["step"] == whole["step"] == 6
    for name, weight in whole["model"].items():
        assert torch.equal(weight, resumed["model"][name]), name
    kept = [state for state in whole["optimizer"]["state"].values() if "momentum" in state]
    assert len(kept) == len(layer_weights(Keypoints(KEYPOINTS)))
    with pytest.raises(ValueError, match="was begun with optimizer = muon, but now it is adamw"):
        tokenizer(tmp_path / "half", shards, replace(constant, steps=9, optimizer="adamw"))


def test_weights_that_are_spread_over_processes_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fsdp, "shard", lambda *_: None)  # as two processes would
    two: Any = SimpleNamespace(num_processes=2, device=torch.device("cpu"), prepare=None)
    guard = NanGuard("tokenizer", "train", True)
    with pytest.raises(ValueError, match="optimizer muon needs whole matrices"):
        TrainStep(Keypoints(KEYPOINTS), replace(TRAIN, sharding="fsdp"), two, "fp32", guard)


def test_a_step_that_overflows_in_fp16_is_skipped():
    model = Small()
    optimizer = Muon(model.parameters(), layer_weights(model), fused=True, **SETTINGS)
    scaler = torch.amp.GradScaler("cpu")
    before = copy.deepcopy(model.state_dict())
    loss = model.first(torch.ones(1, 24)).sum() * float("inf")
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
