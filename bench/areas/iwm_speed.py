"""A training step of an image world model, against the same step with the layers of transformers'
ViT, compiled; on a GPU at ViT-B/16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from bench.areas.language_model_speed import TrainStep
from bench.peers.transformers_vit import TransformersIwm
from bench.races.memory import memory_rows
from bench.races.pairs import Incorrect, Options, Row, compare, drop_broken, race
from data.batch import Batch
from models.layers.precision import Precision
from models.layers.vit import VitConfig
from models.tokenizers.iwm import Iwm, IwmConfig
from pipeline.cuda_graph import StaticCudaGraph
from pipeline.device import pick_precision

AREA = "iwm"
PLAIN, COMPILED = "transformers ViT", "transformers ViT, compiled"
TARGET, STRETCH = 1.2, 1.5
TOLERANCE = 1e-4  # relative, of each term of the loss in float32


@dataclass(frozen=True)
class Workload:
    name: str
    config: IwmConfig
    images: int


# as the sizes of recipes/iwm.py: `core cpu`, the same at 96 pixels, and `base core`
SMALL = Workload(
    "ViT-Ti/16", IwmConfig((64, 64), 16, predictor=VitConfig(96, 8, 4), whiten=True), 64
)
MIDDLE = Workload(
    "ViT-Ti/16", IwmConfig((96, 96), 16, predictor=VitConfig(96, 8, 4), whiten=True), 64
)
LARGE = Workload("ViT-B/16", IwmConfig((224, 224), 16, VitConfig(768, 12, 12), whiten=True), 256)


def rows(options: Options) -> Iterator[Row]:
    """Race steps at 64 and 96 pixels, the latter without --quick; on a GPU at 224."""
    if options.device.type == "cuda":
        sizes = (SMALL,) if options.quick else (LARGE,)
    else:
        sizes = (SMALL,) if options.quick else (SMALL, MIDDLE)
    for work in sizes:
        yield from measure(options, work)


def measure(options: Options, work: Workload, compiled: bool = True) -> Iterator[Row]:
    """Race one step, forward to AdamW and the target encoder's average, on the same frames."""
    device, on_gpu = options.device, options.device.type == "cuda"
    precision = pick_precision(device, "auto")
    torch.manual_seed(0)
    shape = (work.images, 3, *work.config.image_size)
    batch = Batch(frames=torch.randint(0, 256, shape, dtype=torch.uint8)).to(device)
    ours = Iwm(work.config)
    theirs = TransformersIwm(ours)
    ours, theirs = ours.to(device).train(), theirs.to(device).train()
    check({"ours": ours, PLAIN: theirs}, batch)
    steps: dict[str, Callable[[], object]] = {
        "ours, not compiled": IwmStep(ours, batch, device, precision),
        PLAIN: IwmStep(theirs, batch, device, precision),
    }
    if compiled:
        for name, model in (
            ("ours, compiled", Iwm(work.config)),
            (COMPILED, TransformersIwm(ours)),
        ):
            steps[name] = IwmStep(model.to(device).train(), batch, device, precision, compiled=True)
    if on_gpu:
        for name, step in list(steps.items()):
            if name.startswith("ours") and isinstance(step, IwmStep):
                steps[f"{name}, one CUDA graph"] = step.captured()
    layers = work.config.encoder.num_layers + work.config.predictor.num_layers
    side = work.config.image_size[0]
    what = f"step of {work.images} images of {side} px, {work.name} and predictor, {layers} layers"
    for name, why in drop_broken(steps).items():
        yield Row(AREA, what, name, "", note=f"failed: {why}")
    seconds = race(steps, options.rounds, device=device)
    own = [name for name in steps if name.startswith("ours")]
    best = min(own, key=lambda name: median(seconds[name]))
    selected = {name: taken for name, taken in seconds.items() if name == best or name not in own}
    yield from compare(
        AREA, f"{what}, {precision}", selected, {COMPILED: (TARGET, STRETCH)}, best,
        unit="images/s", amount=work.images,
        notes=dict.fromkeys(selected, f"ours: {best.removeprefix('ours, ')}"),
    )  # fmt: skip
    if on_gpu:
        yield from memory_rows(
            AREA, what, {"ours": steps["ours, not compiled"], PLAIN: steps[PLAIN]}, {}
        )


class IwmStep(TrainStep):
    """A step, and the target encoder's after it."""

    def __init__(
        self,
        model: Iwm,
        batch: Batch,
        device: torch.device,
        precision: Precision,
        compiled: bool = False,
    ) -> None:
        terms = torch.compile(model.loss, dynamic=False) if compiled else model.loss

        def loss() -> Tensor:
            found = terms(batch)
            return found["prediction"] + found["reconstruction"]

        super().__init__(model, loss, device, precision)
        self.model = model

    def __call__(self) -> None:
        super().__call__()
        self.model.after_step()

    def captured(self) -> Callable[[], object]:
        """The whole step as one CUDA graph, as --train.cuda-graph does."""
        graphed = StaticCudaGraph(self._graph_step, self.device)
        return lambda: graphed()

    def _graph_step(self) -> list[Tensor]:
        self()
        return []


def check(models: dict[str, Iwm], batch: Batch) -> None:
    """Raise Incorrect unless all have the same losses for the same views and masks, and move the
    encoder's weights alike: by the gradient of its first layer, which the embedding is."""
    found: dict[str, dict[str, float]] = {}
    for name, model in models.items():
        torch.manual_seed(1)
        losses = model.loss(batch.map(lambda frames: frames[:4]))
        sum(loss for loss in losses.values() if loss.requires_grad).backward()  # type: ignore[union-attr]
        gradient = model.encoder.patch_emb.weight.grad
        assert gradient is not None
        found[name] = {term: float(loss.detach()) for term, loss in losses.items()}
        found[name]["gradient"] = float(gradient.norm())
        model.zero_grad(set_to_none=True)
    for name, terms in found.items():
        for term, value in terms.items():
            exact = found["ours"][term]
            if not abs(value - exact) <= TOLERANCE * abs(exact):
                raise Incorrect(f"{name}: {term} is {value:g}, but ours is {exact:g}")
