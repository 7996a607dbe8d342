"""The memory of a training, predicted and measured on small models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from data.actions import ActionSpec
from data.batch import Batch
from models.dynamics.language_model import LanguageModelConfig
from models.dynamics.predictor import PredictorConfig
from models.layers.precision import Precision, autocast
from models.layers.transformer import TransformerConfig
from models.registry import DataSpec, build_dynamics
from models.tokenizers.tokenizer import LatentSpec
from pipeline.training.memory_estimate import estimate_memory
from pipeline.training.train_step import Ema

pytest.importorskip("transformers")

ACTIONS = ActionSpec("continuous", ("x", "y"), (-1.0, -1.0), (1.0, 1.0))
DATA = DataSpec((32, 32), ACTIONS, LatentSpec("continuous", (1, 1), 16))
SMALL = TransformerConfig(dim=64, num_layers=4, num_heads=4, mlp_dim=128, context_frames=3)
LM = LanguageModelConfig(transformer=SMALL)
CLIPS = 8


def measured(config: Any, precision: Precision) -> tuple[int, int, int, int, int]:
    """Weights, gradients, moments, average and activations of a step that is taken, in bytes."""
    model = build_dynamics(config, DATA).train()
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    shape = (CLIPS, config.clip_length)
    batch = Batch(
        latents=torch.randn(*shape, 1, 16), actions=torch.rand(*shape, 2),
        rewards=torch.rand(shape), continues=torch.ones(shape),
    )  # fmt: skip
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        autocast(torch.device("cpu"), precision),
    ):
        total = sum(model.loss(batch).values(), torch.zeros(()))
    activations = sum(t.untyped_storage().nbytes() for k, t in kept.items() if k not in own)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    total.backward()
    optimizer.step()
    moments = [m for s in optimizer.state.values() for k, m in s.items() if k != "step"]
    gradients = [p.grad for p in trained if p.grad is not None]
    average = Ema(model, 0.9).weights.values()
    held = ([*model.parameters()], gradients, moments, average)
    return (*(sum(t.nbytes for t in tensors) for tensors in held), activations)  # type: ignore[return-value]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "config",
    [
        LM,
        replace(LM, family="gpt2"),
        replace(LM, tuning="frozen"),
        replace(LM, tuning="lora"),
        PredictorConfig(transformer=SMALL),
    ],
    ids=["llama", "gpt2", "frozen", "lora", "predictor"],
)
def test_what_is_predicted_is_what_a_step_keeps(config: Any, precision: Precision) -> None:
    if getattr(config, "tuning", "") == "lora":
        pytest.importorskip("peft")
    found = estimate_memory(config, DATA, CLIPS, precision)
    *held, activations = measured(config, precision)
    assert [found.weights, found.gradients, found.moments, found.ema] == held
    assert found.activations == pytest.approx(activations, rel=0.02)


def test_checkpointing_keeps_a_layer_where_it_kept_all() -> None:
    checkpointed = replace(LM, transformer=replace(SMALL, activation_checkpointing=True))
    whole, less = (estimate_memory(c, DATA, CLIPS, "fp32") for c in (LM, checkpointed))
    kept = measured(checkpointed, "fp32")[-1]
    assert kept < less.activations < 0.6 * whole.activations
    assert less.activations == kept + (whole.activations - kept) // SMALL.num_layers


def test_half_a_billion_weights_are_predicted_without_taking_them() -> None:
    """A Qwen3 of 0.6 B weights without its table of words: 0.44 B."""
    large = TransformerConfig(
        dim=1024, num_layers=28, num_heads=16, mlp_dim=3072, context_frames=3,
        activation_checkpointing=True,
    )  # fmt: skip
    found = estimate_memory(replace(LM, family="qwen3", transformer=large), DATA, 64)
    assert found.weights == pytest.approx(4 * 0.383e9, rel=0.02)
    assert found.moments == 2 * found.weights
    assert found.total == sum(vars(found).values())
    assert found.describe().startswith(f"{found.total / 2**30:.2f} GiB: weights 1.4")
