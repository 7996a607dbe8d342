"""A training step of a language model as dynamics, against transformers and PEFT used plainly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench.peers import plain_transformers
from bench.peers.plain_transformers import PlainLanguageModel
from bench.races.memory import memory_rows
from bench.races.pairs import Incorrect, Options, Row, compare, missing_row, race
from data.actions import ActionSpec
from data.batch import Batch
from models.dynamics import causal_backbone
from models.dynamics.language_model import LanguageModelConfig, LanguageModelDynamics
from models.layers.precision import Precision, autocast
from models.layers.transformer import TransformerConfig
from models.tokenizers.tokenizer import LatentSpec
from pipeline.device import pick_precision

AREA = "language"
ACTIONS = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (512.0, 512.0), pointer=True)
LATENTS = LatentSpec("continuous", (1, 1), 64)
PEERS = {"full": "transformers", "lora": "transformers + PEFT"}
TARGET, STRETCH = 1.0, 1.2
RANK = 8
TOLERANCE = 1e-4  # of outputs whose scale is 1
Tuning = Literal["full", "lora"]


@dataclass(frozen=True)
class Workload:
    name: str
    config: TransformerConfig
    clips: int
    blocks: int


SMALL = Workload(
    "2M",
    TransformerConfig(dim=192, num_layers=4, num_heads=6, mlp_dim=512, context_frames=3),
    64,
    4,
)
LARGE = Workload(  # SmolLM2-135M's sizes, all heads with keys of their own
    "135M",
    TransformerConfig(dim=576, num_layers=30, num_heads=9, mlp_dim=1536, context_frames=8), 64, 32,
)  # fmt: skip


def rows(options: Options) -> Iterator[Row]:
    """Race steps of a model of 2M weights, on a GPU of one of 135M, trained whole and by
    adapters."""
    workload = LARGE if options.device.type == "cuda" and not options.quick else SMALL
    for tuning in ("full", "lora"):
        yield from measure(options, workload, tuning)


def measure(options: Options, workload: Workload, tuning: Tuning) -> Iterator[Row]:
    """Race one training step, forward to AdamW, on the same clips."""
    precision, peer = pick_precision(options.device, "auto"), PEERS[tuning]
    what = f"step of {workload.clips} x {2 * workload.blocks} tokens, {workload.name}, {tuning}"
    try:
        ours, theirs = build(workload, tuning)
    except ImportError:
        yield missing_row(AREA, what, peer, plain_transformers.INSTALL)
        return
    check(ours, theirs)
    batch = random_batch(workload, ours.frameskip).to(options.device)
    ours, theirs = ours.to(options.device), theirs.to(options.device)
    frames, actions, target = as_tokens(batch, ours.frameskip)

    def our_loss() -> Tensor:
        return ours.loss(batch)["prediction"]

    def their_loss() -> Tensor:
        return nn.functional.mse_loss(theirs(frames, actions).float(), target)

    steps = {
        "ours": TrainStep(ours, our_loss, options.device, precision),
        peer: TrainStep(theirs, their_loss, options.device, precision),
    }
    seconds = race(steps, options.rounds, device=options.device)
    tokens = workload.clips * workload.blocks * 2
    yield from compare(
        AREA, f"{what}, {precision}", seconds, {peer: (TARGET, STRETCH)}, unit="tokens/s",
        amount=tokens,
    )  # fmt: skip
    if options.device.type == "cuda":
        yield from memory_rows(AREA, what, steps, {peer: (TARGET, STRETCH)})


class TrainStep:
    """Repeats a step on one batch."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[], Tensor],
        device: torch.device,
        precision: Precision,
    ) -> None:
        self.loss, self.device = loss, device
        self.precision: Precision = precision
        trained = [p for p in model.train().parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, 1e-4, fused=True)

    def __call__(self) -> None:
        with autocast(self.device, self.precision):
            loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def build(workload: Workload, tuning: Tuning) -> tuple[LanguageModelDynamics, PlainLanguageModel]:
    """Ours, without what theirs does not do (heads of rewards, a second pass), and theirs with the
    same weights of the language model.  ImportError where PEFT is missing."""
    frameskip = LanguageModelConfig.frameskip
    config = LanguageModelConfig(
        transformer=workload.config, tuning=tuning, lora_rank=RANK, lora_alpha=2 * RANK,
        clip_length=workload.blocks * frameskip + 1, rewards=False, rollout_weight=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    base = causal_backbone.make_random("llama", workload.config, 2 * workload.blocks)
    theirs = PlainLanguageModel(
        base, workload.config.dim, LATENTS.dim, (frameskip, ACTIONS.size), tuning, RANK
    )
    ours = LanguageModelDynamics(config, LATENTS, ACTIONS)
    own = ours.backbone.state_dict()
    named = {name.replace(".base_layer", ""): name for name in own}
    own.update({named[name]: value for name, value in base.state_dict().items()})
    ours.backbone.load_state_dict(own)
    return ours, theirs


@torch.no_grad()
def check(ours: LanguageModelDynamics, theirs: PlainLanguageModel) -> None:
    """Raise Incorrect unless both language models give the same for the same vectors."""
    width = ours.config.transformer.dim
    tokens = torch.randn(2, 8, width, generator=torch.Generator().manual_seed(0))
    mine, _ = causal_backbone.run(ours.eval().backbone, tokens)
    other = theirs.eval().backbone(inputs_embeds=tokens, use_cache=False).last_hidden_state
    error = float((mine - other).abs().max())
    if not error <= TOLERANCE:
        raise Incorrect(f"outputs differ by {error:g}, {TOLERANCE:g} allowed")


def random_batch(workload: Workload, frameskip: int) -> Batch:
    frames = workload.blocks * frameskip + 1
    return Batch(
        latents=torch.randn(workload.clips, frames, LATENTS.num_patches, LATENTS.dim),
        actions=torch.rand(workload.clips, frames, ACTIONS.size) * 2 - 1,
    )


def as_tokens(batch: Batch, frameskip: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch as frames (B, K, D), the actions between them (B, K, N, A), and the next frames."""
    latents, actions = batch.require("latents", "actions")
    kept = latents[:, ::frameskip].flatten(2)
    blocks = kept.shape[1] - 1
    between = actions[:, : blocks * frameskip].unflatten(1, (blocks, frameskip))
    return kept[:, :-1], between, kept[:, 1:]
