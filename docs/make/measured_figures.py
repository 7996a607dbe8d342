"""Draw what small experiments say: a resumed training, memory, learning rates, masks, a checkpoint.

Each is made while this runs, in some two minutes of one CPU core.

Reads   checkpoints/pusht-goals, the recipes.
Writes  docs/images/: resumed, memory, schedules, masks, checkpoint (.svg).
Try     python docs/make/measured_figures.py
        python docs/make/measured_figures.py memory
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from drawing import BLUE, GREEN, INK, MARGIN, ORANGE, ROOT, SOFT, WIDTH, Drawing

sys.path[:0] = [str(ROOT)]

import train_tokenizer  # noqa: E402
from data.pusht.simulator import ACTIONS  # noqa: E402
from data.toy import write_toy_shards  # noqa: E402
from kernels.reference import BlockMask  # noqa: E402
from models.dynamics.language_model import LanguageModelConfig  # noqa: E402
from models.layers.transformer import TransformerConfig  # noqa: E402
from models.registry import DataSpec  # noqa: E402
from models.tokenizers.tokenizer import LatentSpec  # noqa: E402
from pipeline.training.memory_estimate import estimate_memory  # noqa: E402
from pipeline.training.train_config import TrainConfig  # noqa: E402
from pipeline.training.trainer import Trainer  # noqa: E402
from shape_figures import settings  # noqa: E402

RUN = ROOT / "checkpoints/pusht-goals"


def resumed() -> None:
    """6 steps at once, and 3, a stop, a resume and 3: the fingerprints of both."""
    base = settings("tokenizer", "keypoints debug")
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for name, stops in (("whole", (6,)), ("resumed", (3, 6))):
            run = Path(folder) / name
            write_toy_shards(run / "shards", size=64)
            for steps in stops:
                train = replace(base.train, steps=steps, eval_every=3, schedule="constant")
                train_tokenizer.main(replace(base, run=run, train=train, device="cpu"))
            last = torch.load(run / "tokenizer/last.pt", weights_only=True)
            found.append(last["fingerprint"])
    d = Drawing(150, "Six steps, and three, a stop and three more, end in the same weights")
    for row, (words, print_, cut) in enumerate(zip(("6 steps at once", "3 steps, a stop, 3 more"),
                                                   found, (False, True), strict=True)):  # fmt: skip
        y = 20 + 62 * row
        d.words(MARGIN, y, words, INK, 12, 'font-weight="600"')
        for step in range(6):
            x = MARGIN + 34 * step + (14 if cut and step > 2 else 0)
            d.box(x, y + 8, 30, 22, str(step + 1), BLUE, 12)
        if cut:
            d.line([(MARGIN + 105, y + 4), (MARGIN + 105, y + 34)], ORANGE, dashed=True, width=2)
        d.arrow((236, y + 19), (249, y + 19))
        d.box(250, y + 8, 134, 22, print_, GREEN, 11)
    same = "equal, bit for bit" if found[0] == found[1] else "NOT EQUAL"
    d.words(
        WIDTH - MARGIN, 134, f"fingerprints of the weights: {same}", INK, 12, 'text-anchor="end"'
    )
    if found[0] != found[1]:
        raise ValueError(f"the resumed training differs: {found}")
    d.save("resumed.svg")


def memory() -> None:
    """What a training of a language model of 135M as dynamics takes, and what takes less."""
    sizes = TransformerConfig(dim=576, num_layers=30, num_heads=9, mlp_dim=1536, context_frames=3)
    model = LanguageModelConfig(transformer=sizes)
    data = DataSpec((64, 64), ACTIONS, LatentSpec("continuous", (1, 1), 64))
    saved = replace(model, transformer=replace(model.transformer, activation_checkpointing=True))
    cases = (
        ("64 clips", model, 64), ("in 4 micro-batches", model, 16),
        ("activation checkpointing", saved, 64), ("both", saved, 16),
    )  # fmt: skip
    found = [(name, estimate_memory(config, data, clips)) for name, config, clips in cases]
    most = max(estimate.total for _, estimate in found) / 2**30
    d = Drawing(64 + 44 * len(found), "Memory of a training: weights and state, and activations")
    d.words(MARGIN, 18, "GiB of a training step, 135 M weights", INK, 13, 'font-weight="600"')
    scale = (WIDTH - 2 * MARGIN - 46) / most
    for number, (name, estimate) in enumerate(found):
        y = 28 + 44 * number
        fixed = (estimate.total - estimate.activations) / 2**30
        kept = estimate.activations / 2**30
        d.words(MARGIN, y + 13, name, INK, 12)
        d.bar(MARGIN, y + 18, fixed * scale, 16, BLUE)
        d.bar(MARGIN + fixed * scale, y + 18, kept * scale, 16, ORANGE)
        d.words(MARGIN + (fixed + kept) * scale + 6, y + 31, f"{fixed + kept:.1f}", INK, 12)
    y = 38 + 44 * len(found)
    for x, color, words in ((MARGIN, BLUE, "weights, gradients, moments, average"),
                            (252, ORANGE, "activations")):  # fmt: skip
        d.bar(x, y, 10, 10, color)
        d.words(x + 15, y + 9, words, INK, 11)
    d.save("memory.svg")


def schedules() -> None:
    """The learning rate by step, as the trainer computes it."""
    steps, warmup = 1000, 50
    d = Drawing(196, "Learning rate by step under the schedules cosine, plateau and constant")
    d.words(MARGIN, 18, "learning rate, as a share of its peak", INK, 13, 'font-weight="600"')
    left, right, top, low = 44, 290, 32, 172
    for share in (0, 0.5, 1):
        y = low - (low - top) * share
        d.line([(left, y), (right, y)], "#ddd", width=1)
        d.words(left - 6, y + 4, f"{share:g}", SOFT, 11, 'text-anchor="end"')
    for name, color, dashed in (("constant", ORANGE, True), ("cosine", BLUE, False)):
        train = TrainConfig(steps=steps, warmup_steps=warmup, schedule=name)  # type: ignore[arg-type]
        points = []
        for step in range(0, steps + 1, 10):
            rate = Trainer._learning_rate(_Bare(train), step) / train.peak_learning_rate  # type: ignore[arg-type]
            points.append((left + (right - left) * step / steps, low - (low - top) * rate))
        d.line(points, color, dashed=dashed, width=2)
        words = (
            "constant; plateau|lowers it when|nothing improves" if name == "constant" else "cosine"
        )
        for number, part in enumerate(words.split("|")):
            d.words(right + 6, points[-1][1] + 4 + 14 * number, part, color, 11)
    d.words(left, low + 15, "0", SOFT, 11)
    d.words(right, low + 15, f"{steps} steps", SOFT, 11, 'text-anchor="end"')
    d.words(left + 18, low + 15, f"warm-up: {warmup}", SOFT, 11)
    d.save("schedules.svg")


class _Bare:
    """What `Trainer._learning_rate` reads of a trainer."""

    def __init__(self, train: TrainConfig) -> None:
        self.train, self.global_step, self.lr_scale = train, 0, 1.0


def masks() -> None:
    """Which keys queries see, under the masks of the models."""
    kinds = (
        ("causal", BlockMask(), "token by token"),
        ("by frames", BlockMask(3), "a frame is seen whole"),
        ("limited", BlockMask(3, context_blocks=2), "this frame and one before"),
    )
    d = Drawing(176, "Attention masks: causal, by frames, and frames of a limited context")
    cell, count = 9.5, 12
    for number, (name, mask, words) in enumerate(kinds):
        left, top = MARGIN + 128 * number, 26
        d.words(left, 17, name, INK, 13, 'font-weight="600"')
        seen = mask.mask(count, count)
        for row in range(count):
            for column in range(count):
                visible = bool(seen[row, column])
                d.bar(left + cell * column, top + cell * row, cell - 1.5, cell - 1.5,
                      BLUE if visible else "#999", 0.85 if visible else 0.15)  # fmt: skip
        for part_number, part in enumerate(_halves(words)):
            d.words(left, top + cell * count + 14 + 14 * part_number, part, SOFT, 11)
    d.save("masks.svg")


def _halves(words: str) -> list[str]:
    if len(words) < 22:
        return [words]
    at = words.rindex(" ", 0, 18)
    return [words[:at], words[at + 1 :]]


def checkpoint() -> None:
    """Fields of a real checkpoint, their sizes, and the chain of fingerprints."""
    chain = [
        ("tokenizer", "tokenizer"),
        ("dynamics", "dynamics"),
        ("goal policy", "controller/goal_policy"),
    ]
    d = Drawing(232, "Three checkpoints, each with the fingerprint of its parent")
    y = 10
    for number, (name, path) in enumerate(chain):
        held = torch.load(RUN / path / "best.pt", weights_only=True)
        weights = sum(t.numel() * t.element_size() for t in held["model"].values())
        count = sum(t.numel() for t in held["model"].values())
        d.box(MARGIN, y, WIDTH - 2 * MARGIN, 58, "", BLUE)
        head = f"{name}: format {held['format']}, step {held['step']:,}"
        size = f"{count / 1e6:.2f} M numbers, {weights / 1e6:.1f} MB"
        d.words(MARGIN + 10, y + 18, head, BLUE, 13, 'font-weight="600"')
        d.words(MARGIN + 10, y + 35, f"model: {len(held['model'])} tensors, {size}", INK, 12)
        d.words(MARGIN + 10, y + 51, f"fingerprint {held['fingerprint']}", INK, 12)
        parent = held["parent"]["fingerprint"]
        if number:
            d.words(
                WIDTH - MARGIN - 10, y + 51, f"parent {parent}", ORANGE, 11, 'text-anchor="end"'
            )
            d.arrow((WIDTH - 60, y), (WIDTH - 60, y - 18))
        y += 76
    d.save("checkpoint.svg")


FIGURES = {
    "resumed": resumed, "memory": memory, "schedules": schedules, "masks": masks,
    "checkpoint": checkpoint,
}  # fmt: skip

if __name__ == "__main__":
    for name in sys.argv[1:] or FIGURES:
        FIGURES[name]()
