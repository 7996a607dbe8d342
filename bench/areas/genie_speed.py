"""A frame of MaskGIT dynamics, and a pass of its ST-transformer over one frame, against the same
weights without a cache: plain PyTorch, compiled, that reads the whole context in every pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from bench.peers.plain_genie import PlainMaskGit, PlainSpaceTime
from bench.races.pairs import Incorrect, Options, Row, compare, drop_broken, race
from data.actions import ActionSpec
from models.dynamics.dynamics import State
from models.dynamics.maskgit import MaskGit, MaskGitConfig
from models.layers.inference import cast_weights
from models.layers.precision import Precision, autocast
from models.layers.space_time import SpaceTimeTransformer
from models.layers.transformer import TransformerConfig
from models.tokenizers.tokenizer import LatentSpec
from pipeline.cuda_graph import WARMUP_CALLS, CudaGraphed
from pipeline.device import pick_precision
from pipeline.inference.aot_inductor import pick_compile_fn

AREA = "genie"
ACTIONS = ActionSpec("discrete", tuple(f"action {i + 1}" for i in range(8)))
PLAIN, COMPILED, GRAPHS = "no cache", "no cache, compiled", "no cache, compiled, CUDA graphs"
TARGET, STRETCH = 0.5, 0.9
"""Shares of how many times fewer frames pass through the layers than without a cache."""
SEEDS = 5
TOLERANCE = 1e-4  # of outputs whose scale is 1, in float32

Call = Callable[[], Any]


@dataclass(frozen=True)
class Workload:
    name: str
    config: MaskGitConfig
    latents: LatentSpec

    @property
    def saved(self) -> float:
        """How many times fewer frames pass through the layers for a frame: without a cache all of
        the context in each pass, with one the predicted frame, and once the one before it."""
        passes = self.config.sampling_steps
        return self.config.transformer.context_frames * passes / (passes + 1)


def workload(
    name: str, sizes: tuple[int, int, int, int, int], passes: int, latents: LatentSpec
) -> Workload:
    """sizes: width, layers, heads, width of the feed-forward, frames of the context."""
    dim, num_layers, num_heads, mlp_dim, context = sizes
    transformer = TransformerConfig(dim, num_layers, num_heads, mlp_dim, context_frames=context)
    config = MaskGitConfig(transformer, clip_length=context, sampling_steps=passes)
    return Workload(name, config, latents)


# as the sizes of recipes/genie.py
SMALL = workload("cpu", (128, 4, 4, 384, 3), 1, LatentSpec("discrete", (8, 8), 38, 1000, 2))
LARGE = workload("coinrun", (512, 12, 8, 2048, 16), 25, LatentSpec("discrete", (16, 16), 20, 1024))


def rows(options: Options) -> Iterator[Row]:
    """Race at the size `genie cpu`, on a GPU at the paper's for CoinRun as well."""
    on_gpu = options.device.type == "cuda"
    for work in (SMALL, LARGE) if on_gpu and not options.quick else (SMALL,):
        yield from measure(options, work)


def measure(options: Options, work: Workload, compiled: bool = True) -> Iterator[Row]:
    """Race frames and passes of one size, at batch 1."""
    precision = pick_precision(options.device, "auto")
    model = random_model(work).to(options.device)
    check(model, PlainMaskGit(model).to(options.device).eval())
    cast_weights(model, precision)
    parameters = sum(p.numel() for p in model.parameters())
    about = f"genie {work.name}, {parameters / 1e6:.1f}M, {precision}"
    passes = work.config.sampling_steps
    yield from _race(
        f"frame of {passes} pass{'es' * (passes > 1)}, {about}",
        frames(model, options, precision, compiled), options, work.saved,
    )  # fmt: skip
    yield from _race(
        f"ST-transformer over a frame, {about}",
        layer_passes(model.transformer, work, options, precision, compiled), options,
        work.config.transformer.context_frames,
    )  # fmt: skip


def _race(what: str, runners: dict[str, Call], options: Options, saved: float) -> Iterator[Row]:
    """saved: how many times fewer frames pass through our layers."""
    for name, why in drop_broken(runners).items():
        yield Row(AREA, what, name, "", note=f"failed: {why}")
    if options.device.type == "cuda":
        for run in runners.values():
            for _ in range(WARMUP_CALLS):  # from the next call on, each is a graph replay
                run()
    repeats = 10 if options.device.type == "cuda" else 3
    seconds = race(runners, options.rounds, device=options.device, repeats=repeats)
    ours = [name for name in runners if name.startswith("ours")]
    best = min(ours, key=lambda name: median(seconds[name]))
    targets = {name: (TARGET * saved, STRETCH * saved) for name in runners if name not in ours}
    targets.pop(PLAIN, None)
    note = f"ours: {best.removeprefix('ours, ')}; {saved:.2g} times fewer frames in its layers"
    selected = {name: taken for name, taken in seconds.items() if name == best or name not in ours}
    yield from compare(AREA, what, selected, targets, best, notes=dict.fromkeys(selected, note))


def frames(
    model: MaskGit, options: Options, precision: Precision, compiled: bool
) -> dict[str, Call]:
    """What predicts a frame after a whole context, in each way."""
    on_gpu = options.device.type == "cuda"
    latents, actions = random_context(model, 1, options.device)
    plain = PlainMaskGit(model).to(options.device).eval()
    models: dict[str, MaskGit] = {"ours, not compiled": model, PLAIN: plain}
    if compiled:
        fast = models["ours, compiled"] = copy.deepcopy(model)
        fast.compile_steps(pick_compile_fn(options.device))
        for name, mode in ((COMPILED, "default"), (GRAPHS, "reduce-overhead")):
            if name == COMPILED or on_gpu:
                peer = PlainMaskGit(model).to(options.device).eval()
                peer.compile_passes(mode)
                models[name] = peer

    def runner(name: str) -> Call:
        each = models[name]
        state = within(options.device, precision, lambda: start(each, latents, actions))()
        step = CudaGraphed(each.step, options.device) if on_gpu and "ours" in name else each.step
        return within(options.device, precision, lambda: step(state, actions[:, -1]).latents)

    return {name: runner(name) for name in models}


def layer_passes(
    transformer: SpaceTimeTransformer,
    work: Workload,
    options: Options,
    precision: Precision,
    compiled: bool,
) -> dict[str, Call]:
    """One pass of the layers for the last frame of a context, in each way."""
    device, context = options.device, work.config.transformer.context_frames
    tokens = torch.randn(
        1, context, 1 + work.latents.num_patches, work.config.transformer.dim, device=device
    )
    before, last = tokens[:, :-1], tokens[:, -1:]
    _, cache = within(device, precision, lambda: transformer(before))()
    plain = PlainSpaceTime(transformer)
    calls: dict[str, Callable[..., Tensor]] = {
        "ours, not compiled": lambda: transformer(last, cache)[0],
        PLAIN: lambda: plain(tokens)[0][:, -1:],
    }
    if compiled:
        fast = copy.deepcopy(transformer)
        fast.forward = pick_compile_fn(device)(fast, fast.forward)
        calls["ours, compiled"] = lambda: fast(last, cache)[0]
        peer = torch.compile(plain, dynamic=False)
        calls[COMPILED] = lambda: peer(tokens)[0][:, -1:]
    if device.type == "cuda":  # launches would be most of the time
        calls = {name: CudaGraphed(call, device) for name, call in calls.items()}
    return {name: within(device, precision, call) for name, call in calls.items()}


def within(device: torch.device, precision: Precision, call: Call) -> Call:
    """Call in a precision, without gradients."""

    def run() -> Any:
        with torch.inference_mode(), autocast(device, precision):
            return call()

    return run


def random_model(work: Workload) -> MaskGit:
    """A model whose codes depend on all that it reads: those of a new one copy the last frame."""
    torch.manual_seed(0)
    model = MaskGit(work.config, work.latents, ACTIONS)
    for weight in model.transformer.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    nn.init.normal_(model.vectors.codebook)
    model.code_numbers.copy_(model.vectors.codebook)
    nn.init.normal_(model.class_head)
    nn.init.zeros_(model.copy_logit.bias)
    return model.eval()


def random_context(model: MaskGit, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Codes of the frames that a prediction sees, (1, C - 1, N), and the action to each, (1, C)."""
    generator = torch.Generator().manual_seed(seed)
    shape, size = (1, model.context, model.latents.tokens_per_frame), model.latents.codebook_size
    codes = torch.randint(size, shape, generator=generator)
    actions = torch.randint(ACTIONS.size, (1, model.context + 1), generator=generator)
    return codes.to(device), actions.to(device)


def start(model: MaskGit, latents: Tensor, actions: Tensor) -> State:
    """The state after exactly these frames, with nothing older in its memory: there a model
    without a cache sees the same."""
    known = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)
    led = actions[:, :-1]
    _, cache = model._blocks(latents[:, :-1], led[:, :-1], known[:, :-1])
    return model._state(latents[:, -1], cache, led[:, -1], known[:, -1])


@torch.no_grad()
def check(ours: MaskGit, plain: PlainMaskGit) -> None:
    """Raise Incorrect unless both give the same, in float32: outputs of the layers, and the codes
    of a frame for one seed at least, since by roundings another code may be as likely."""
    device, config = ours.pos_emb.device, ours.config.transformer
    shape = (1, config.context_frames, 1 + ours.latents.num_patches, config.dim)
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    _, cache = ours.transformer(tokens[:, :-1])
    last = ours.transformer(tokens[:, -1:], cache)[0] - plain.transformer(tokens)[0][:, -1:]
    error = float(last.abs().max())
    if not error <= TOLERANCE:
        raise Incorrect(f"outputs differ from those without a cache by {error:g}")
    differ = []
    for seed in range(SEEDS):
        latents, actions = random_context(ours, seed, device)
        found, other = (
            each.step(start(each, latents, actions), actions[:, -1]).latents
            for each in (ours, plain)
        )
        if torch.equal(found, latents[:, -1]):
            raise Incorrect("the predicted frame is the last one: nothing would be compared")
        differ.append(int((found != other).sum()))
    if min(differ):
        raise Incorrect(f"{differ} codes differ from those without a cache, by seed")
