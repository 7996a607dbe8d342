"""A training step of an image world model, against the same step with the layers of transformers'
ViT, compiled; on a GPU at ViT-B/16."""

from __future__ import annotations

import copy
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
from models.layers.precision import Precision, autocast
from models.layers.vit import VitConfig
from models.tokenizers.iwm import Iwm, IwmConfig
from pipeline.cuda_graph import StaticCudaGraph
from pipeline.device import pick_precision

AREA = "iwm"
PLAIN, COMPILED = "transformers ViT", "transformers ViT, compiled"
TARGET, STRETCH = 1.2, 1.5
TOLERANCE = 1e-4  # relative, of each term of the loss in float32
TOLERANCES: dict[Precision, float] = {"fp32": 1e-3, "bf16": 0.03, "fp16": 0.03}
"""The same of all images in the precision that is timed, compiled ones too."""


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
    models: dict[str, Iwm] = {"ours, not compiled": ours, PLAIN: TransformersIwm(ours)}
    if compiled:
        models |= {"ours, compiled": copy.deepcopy(ours), COMPILED: TransformersIwm(ours)}
        compile_layers(models["ours, compiled"])
        compile_layers(models[COMPILED])
    for model in models.values():
        model.to(device).train()
    exact = {name: models[name] for name in ("ours, not compiled", PLAIN)}
    check(exact, batch.map(lambda frames: frames[:4]), "fp32", TOLERANCE)
    check(models, batch, precision, TOLERANCES[precision])
    steps: dict[str, Callable[[], object]] = {
        name: IwmStep(model, batch, device, precision) for name, model in models.items()
    }
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
        self, model: Iwm, batch: Batch, device: torch.device, precision: Precision
    ) -> None:
        def loss() -> Tensor:
            found = model.loss(batch)
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


def compile_layers(model: Iwm) -> None:
    """Compile each layer: equal ones are compiled once, where the step as a whole takes minutes."""
    for part in (model.encoder, model.target_encoder, model.predictor):
        for layer in part.layers.layers:
            layer.compile(dynamic=False)


def check(models: dict[str, Iwm], batch: Batch, precision: Precision, tolerance: float) -> None:
    """Raise Incorrect unless all have the losses of the first one for the same views and masks, and
    the same gradient of the encoder's first weights, those of patches, behind all layers."""
    found: dict[str, dict[str, float]] = {}
    device = batch.require("frames")[0].device
    for name, model in models.items():
        torch.manual_seed(1)
        with autocast(device, precision):
            losses = model.loss(batch)
        (losses["prediction"] + losses["reconstruction"]).backward()
        gradient = model.encoder.patch_emb.weight.grad
        assert gradient is not None
        found[name] = {term: float(loss.detach()) for term, loss in losses.items()}
        found[name]["gradient"] = float(gradient.norm())
        model.zero_grad(set_to_none=True)
    first, exact = next(iter(found.items()))
    for name, terms in found.items():
        for term, value in terms.items():
            if not abs(value - exact[term]) <= tolerance * abs(exact[term]):
                raise Incorrect(f"{name}: {term} is {value:g}, but of {first} {exact[term]:g}")
