"""A training step of an RSSM, against the same model with everything in the loop over time, and
against sheeprl's DreamerV3; on a GPU at the sizes 1m, 12m and 25m, and against a compiled loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.peers import sheeprl
from bench.races.pairs import Incorrect, Options, Row, compare, drop_broken, missing_row, race
from data.actions import ActionSpec
from data.batch import Batch
from models.dynamics.rssm import Rssm, RssmConfig
from models.dynamics.rssm_cell import Posteriors
from models.layers.categorical_groups import sample
from models.layers.precision import Precision, autocast
from models.method import Losses
from pipeline.cuda_graph import StaticCudaGraph
from pipeline.device import PrecisionOption, pick_precision

AREA = "rssm"
IMAGE, CLIPS, FRAMES = (64, 64), 16, 32
ACTIONS = ActionSpec("continuous", ("x", "y"), (0.0, 0.0), (512.0, 512.0), pointer=True)
TOLERANCE = 1e-4  # relative, of each term of the loss in float32
SEEDS = 5
TARGETS = {"all in the loop": (1.5, 3.0), "autograd through the loop": (1.0, 1.5)}
COMPILED = "all in the loop, compiled"
PEER_TARGET, GPU_TARGET = (1.5, 3.0), (3.0, 10.0)
PEER_CONFIGS = {
    "1m": RssmConfig(deter_dim=512, hidden_dim=64, num_classes=4, embed_dim=128, channels=8),
    "12m": RssmConfig(deter_dim=2048, hidden_dim=256, num_classes=16, embed_dim=512),
    "25m": RssmConfig(deter_dim=3072, hidden_dim=384, num_classes=24, embed_dim=768),
}
"""As the sizes of recipes/dreamer.py."""


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
            h = cell.advance(h, z, actions[:, t - 1]) if t else cell.first(batch_size, h)
            seen = frames[:, t], exponential[t], rewards[:, t], continues[:, t]
            z, terms = self.see(h, z, *seen)
            losses.append(terms)
        return {name: torch.stack([one[name] for one in losses]).mean() for name in losses[0]}

    def see(
        self,
        h: Tensor,
        before: Tensor,
        frame: Tensor,
        exponential: Tensor,
        reward: Tensor,
        continues: Tensor,
    ) -> tuple[Tensor, Losses]:
        """z of one frame, given the z before it, and the losses of it."""
        patches = self._patches(frame) - self.background.mean
        prior = self.cell.prior(h, before)
        posterior = self.cell.posterior(h, self._encode(patches))
        z = sample(posterior, exponential).flatten(1)
        self.seen = Posteriors(torch.cat([h, z], -1)[:, None], posterior[:, None], prior[:, None])
        part = Batch(rewards=reward[:, None], continues=continues[:, None])
        return z, self.losses_of(self.seen, patches[:, None], part)


class CompiledRssm(PlainRssm):
    """The same with the work of a frame compiled, which takes a minute, where that of all takes
    many."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.see = torch.compile(self.see)  # type: ignore[method-assign]
        self.cell.advance = torch.compile(self.cell.advance)  # type: ignore[method-assign]


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
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), 1e-4, fused=True, capturable=options.device.type == "cuda"
        )

    def losses(self, seed: int) -> Losses:
        """Of one clip, with these random numbers."""
        torch.manual_seed(seed)
        return self.model.loss(self.batch.map(lambda values: values[:1]))

    def __call__(self) -> None:
        with autocast(self.device, self.precision):
            terms = self.model.loss(self.batch).values()
            total = sum((x for x in terms if x.requires_grad), torch.zeros(()))
        assert isinstance(total, Tensor)
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def captured(self) -> Callable[[], object]:
        """The whole step as one CUDA graph, as --train.cuda-graph does."""
        self.model.loss(self.batch)
        self.model.after_step()  # the background is seen before
        graphed = StaticCudaGraph(self._graph_step, self.device)
        return lambda: graphed()

    def _graph_step(self) -> list[Tensor]:
        self()
        return []


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
    on_gpu = options.device.type == "cuda"
    for size in PEER_CONFIGS if on_gpu and not options.quick else ("1m",):
        for precision in sorted(precisions):
            yield from next_to_peers(
                batch, options, f"{what}, {size}, {precision}", size, precision
            )


def next_to_peers(
    batch: Batch, options: Options, what: str, size: str, precision: Precision
) -> Iterator[Row]:
    """Race steps of the world model at DreamerV3's sizes of h, z and hidden layers; the images pass
    through sheeprl's in convolutions, through ours in patches.  On a GPU ours is one CUDA graph,
    and the loop in its way of one frame at a time is compiled."""

    def step(kind: type[Rssm]) -> TrainStep:
        return TrainStep(kind, batch, options, PEER_CONFIGS[size], precision)

    on_gpu, ours = options.device.type == "cuda", step(Rssm)
    runners: dict[str, Callable[[], object]] = {"ours": ours.captured() if on_gpu else ours}
    notes = {}
    if on_gpu:
        compiled = runners[COMPILED] = step(CompiledRssm)
        check({"ours": ours, COMPILED: compiled})
    try:
        runners["sheeprl"], parameters = sheeprl.world_step(size.upper(), batch, IMAGE, precision)
        own = sum(p.numel() for p in ours.model.parameters())
        notes["sheeprl"] = f"{own / 1e6:.2f} M parameters, theirs {parameters / 1e6:.2f} M"
    except ImportError:
        yield missing_row(AREA, what, "sheeprl", sheeprl.INSTALL)
    for name, why in drop_broken(runners).items():
        yield Row(AREA, what, name, "", note=f"failed: {why}")
    if "ours" not in runners:
        return
    seconds = race(runners, options.rounds, device=options.device)
    targets = dict.fromkeys(runners, GPU_TARGET if on_gpu else PEER_TARGET)
    yield from compare(AREA, what, seconds, targets, notes=notes)


def random_batch(clips: int) -> Batch:
    return Batch(
        frames=torch.randint(0, 256, (clips, FRAMES, 3, *IMAGE), dtype=torch.uint8),
        actions=torch.rand(clips, FRAMES, 2) * 2 - 1,
        rewards=torch.rand(clips, FRAMES),
        continues=torch.ones(clips, FRAMES),
    )


def check(steps: dict[str, TrainStep]) -> None:
    """Raise Incorrect unless all have the same losses for the same random numbers: for one seed,
    since by their roundings z may be another class that is as likely."""
    wrong = ""
    for seed in range(SEEDS):
        with torch.no_grad():
            found = {name: step.losses(seed) for name, step in steps.items()}
        wrong = difference(found)
        if not wrong:
            return
    raise Incorrect(wrong)


def difference(found: dict[str, Losses]) -> str:
    """Say which loss is not ours; empty where all are."""
    for name, losses in found.items():
        for term, value in losses.items():
            exact = float(found["ours"][term])
            if abs(float(value) - exact) > TOLERANCE * abs(exact):
                return f"{name}: {term} is {float(value):g}, but ours is {exact:g}"
    return ""
