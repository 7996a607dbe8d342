"""A training step of an RSSM, against the same model with everything in the loop over time, and
against sheeprl's DreamerV3."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.pairs import Incorrect, Options, Row, compare, missing_row, race
from bench.peers import sheeprl
from data.actions import ActionSpec
from data.batch import Batch
from models.dynamics.rssm import Rssm, RssmConfig
from models.dynamics.rssm_cell import Posteriors
from models.layers.categorical_groups import sample
from models.layers.precision import Precision, autocast
from models.method import Losses
from pipeline.device import PrecisionOption, pick_precision

AREA = "rssm"
IMAGE, CLIPS, FRAMES = (64, 64), 16, 32
ACTIONS = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (512.0, 512.0), pointer=True)
TOLERANCE = 1e-4  # relative, of each term of the loss in float32
TARGETS = {"all in the loop": (1.5, 3.0), "autograd through the loop": (1.0, 1.5)}
PEER_TARGETS = {"sheeprl": (1.5, 3.0)}
PEER_SIZE = "1m"
PEER_CONFIG = RssmConfig(deter_dim=512, hidden_dim=64, num_classes=4, embed_dim=128, channels=8)


class PlainRssm(Rssm):
    """Encodes, follows, decodes and reads heads frame by frame: what one would write first."""

    def loss(self, batch: Batch) -> Losses:
        frames, actions = batch.require("frames", "actions")
        rewards, continues = batch.require("rewards", "continues")
        batch_size, length = frames.shape[:2]
        cell, losses = self.cell, []
        shape = (length, batch_size, *cell.groups)
        exponential = torch.empty(shape, device=frames.device).exponential_().clamp_(min=1e-30)
        h, z = cell.zeros(batch_size, actions)
        for t in range(length):
            patches = self._patches(frames[:, t]) - self.background.mean
            embed = self._encode(patches)
            h = cell.advance(h, z, actions[:, t - 1]) if t else cell.first(batch_size, embed)
            prior, posterior = cell.prior(h), cell.posterior(h, embed)
            z = sample(posterior, exponential[t]).flatten(1)
            self.seen = Posteriors(
                torch.cat([h, z], -1)[:, None], posterior[:, None], prior[:, None]
            )
            part = Batch(rewards=rewards[:, t : t + 1], continues=continues[:, t : t + 1])
            losses.append(self.losses_of(self.seen, patches[:, None], part))
        return {name: torch.stack([one[name] for one in losses]).mean() for name in losses[0]}


class LoopRssm(Rssm):
    """Ours, with autograd through the loop."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.cell._scans = lambda x: False  # type: ignore[method-assign]


class TrainStep:
    """Repeats a step on one batch."""

    def __init__(
        self,
        kind: type[Rssm],
        batch: Batch,
        options: Options,
        config: RssmConfig,
        wanted: PrecisionOption,
    ) -> None:
        torch.manual_seed(0)
        self.batch, self.device = batch, options.device
        self.precision: Precision = pick_precision(options.device, wanted)
        self.model = kind(config, IMAGE, ACTIONS).to(options.device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, fused=True)

    def losses(self) -> Losses:
        torch.manual_seed(1)
        return self.model.loss(self.batch)

    def __call__(self) -> None:
        with autocast(self.device, self.precision):
            terms = self.losses().values()
            total = sum((x for x in terms if x.requires_grad), torch.zeros(()))
        assert isinstance(total, Tensor)
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def rows(options: Options) -> Iterator[Row]:
    """Race steps of 16 clips of 32 frames, a quarter of that with --quick."""
    clips = CLIPS // 4 if options.quick else CLIPS
    kinds = {
        "ours": Rssm, "all in the loop": PlainRssm, "autograd through the loop": LoopRssm,
    }  # fmt: skip
    batch = random_batch(clips).to(options.device)
    steps = {
        name: TrainStep(kind, batch, options, RssmConfig(), "auto") for name, kind in kinds.items()
    }
    check(steps)
    seconds = race(steps, options.rounds, device=options.device)
    what = f"step of {clips} x {FRAMES} frames"
    yield from compare(AREA, f"{what}, {steps['ours'].precision}", seconds, TARGETS)
    precisions: set[Precision] = {steps["ours"].precision, "fp32"}
    for precision in sorted(precisions):
        yield from next_to_sheeprl(batch, options, f"{what}, {PEER_SIZE}, {precision}", precision)


def next_to_sheeprl(
    batch: Batch, options: Options, what: str, precision: Precision
) -> Iterator[Row]:
    """Race steps of the world model at DreamerV3's sizes of h, z and hidden layers; the images pass
    through theirs in convolutions, through ours in patches."""
    try:
        theirs, parameters = sheeprl.world_step(PEER_SIZE.upper(), batch, IMAGE, precision)
    except ImportError:
        yield missing_row(AREA, what, "sheeprl", sheeprl.INSTALL)
        return
    ours = TrainStep(Rssm, batch, options, PEER_CONFIG, precision)
    seconds = race({"ours": ours, "sheeprl": theirs}, options.rounds, device=options.device)
    own = sum(p.numel() for p in ours.model.parameters())
    note = f"{own / 1e6:.2f} M parameters, theirs {parameters / 1e6:.2f} M"
    yield from compare(AREA, what, seconds, PEER_TARGETS, notes={"sheeprl": note})


def random_batch(clips: int) -> Batch:
    return Batch(
        frames=torch.randint(0, 256, (clips, FRAMES, 3, *IMAGE), dtype=torch.uint8),
        actions=torch.rand(clips, FRAMES, 2) * 2 - 1,
        rewards=torch.rand(clips, FRAMES),
        continues=torch.ones(clips, FRAMES),
    )


def check(steps: dict[str, TrainStep]) -> None:
    """Raise Incorrect unless all have the same losses for the same random numbers."""
    with torch.no_grad():
        found = {name: step.losses() for name, step in steps.items()}
    for name, losses in found.items():
        for term, value in losses.items():
            exact = float(found["ours"][term])
            if abs(float(value) - exact) > TOLERANCE * abs(exact):
                raise Incorrect(f"{name}: {term} is {float(value):g}, but ours is {exact:g}")
