"""A training step, forward to AdamW, against Hugging Face's Llama of the same sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from bench.areas import roofline
from bench.peers import hugging_face
from bench.peers.hugging_face import Attention
from bench.races.ceiling import share_of_ceiling
from bench.races.pairs import (
    Incorrect,
    Options,
    Row,
    compare,
    drop_broken,
    missing_row,
    race,
    reason,
    value_row,
)
from bench.races.products import ProductsOf
from kernels import linear_cross_entropy
from models.layers.precision import Precision, autocast
from models.layers.transformer import Transformer, TransformerConfig
from pipeline.cuda_graph import StaticCudaGraph
from pipeline.device import pick_precision

Loss = Callable[[Tensor, Tensor], Tensor]
Wrap = Callable[[Any], Callable[..., Any]]
"""From a model of theirs to what is called instead of it."""


@dataclass(frozen=True)
class Workload:
    """The model that a step trains, and the size of its batch."""

    config: TransformerConfig
    vocab_size: int
    grid: tuple[int, int]
    """Rows and columns of a frame's tokens; a sequence is as many frames as the context."""
    batch_size: int = 1

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame."""
        return self.grid[0] * self.grid[1]

    @property
    def sequence_length(self) -> int:
        """Tokens of a sequence."""
        return self.config.context_frames * self.frame_tokens

    def sample(self, count: int, device: torch.device) -> Tensor:
        """Draw (batch, count) random tokens."""
        return torch.randint(self.vocab_size, (self.batch_size, count), device=device)


def llama_config(
    dim: int, num_layers: int, num_heads: int, mlp_dim: int, context_frames: int
) -> TransformerConfig:
    """Return the config of Llama's layers, which do not normalize queries and keys."""
    return TransformerConfig(
        dim, num_layers, num_heads, mlp_dim, context_frames=context_frames, qk_norm=False
    )


FULL = Workload(llama_config(256, 8, 4, 704, context_frames=4), 1024, (8, 8), batch_size=8)
# for a GPU: 150M parameters, 32k tokens a step
LARGE = Workload(llama_config(576, 24, 9, 2688, context_frames=4), 1024, (16, 16), batch_size=32)
CEILING = "products, clipping and AdamW of the step alone"
GRADIENT_SEQUENCES = 2  # sequences on which gradients are compared
QUICK = Workload(llama_config(128, 2, 4, 352, context_frames=4), 512, (4, 8), batch_size=4)


class TokenModel(nn.Module):
    """Our transformer as a causal language model over the tokens of consecutive frames.

    A token attends to all before it: this is Llama, but for the angles, which encode a token's
    position in its frame as well.

    Letters: B sequences, S tokens, D width, V vocabulary.
    """

    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.work = work
        dim, (rows, columns) = work.config.dim, work.grid
        positions = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        self.embed = nn.Embedding(work.vocab_size, dim)
        self.transformer = Transformer(work.config, positions, causal_within_frame=True)
        self.head = nn.Linear(dim, work.vocab_size, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Compute the cross-entropy of the next tokens: (B, S), (B, S) -> ()."""
        x = self.transformer(self.embed(tokens))[0]
        losses, _ = linear_cross_entropy(x.flatten(0, 1), self.head.weight, targets.flatten())
        return losses.mean()

    def logits(self, tokens: Tensor) -> Tensor:
        """Compute logits: (B, S) -> (B, S, V)."""
        return self.head(self.transformer(self.embed(tokens))[0])


class StepRunner:
    """Takes training steps on one batch; a call returns the loss before the step."""

    def __init__(
        self, model: nn.Module, loss: Loss, batch: tuple[Tensor, Tensor], precision: Precision
    ) -> None:
        self.parameters = list(model.parameters())
        self.loss, self.batch = loss, batch
        self.precision: Precision = precision
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True,
            capturable=batch[0].is_cuda,
        )  # fmt: skip

    def gradients(self) -> Tensor:
        """Run forward and backward; return the loss."""
        with autocast(self.batch[0].device, self.precision):
            loss = self.loss(*self.batch)
        loss.backward()
        return loss.detach()

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.gradients()
        clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return loss.clone()  # a CUDA graph writes the next one to the same memory

    def captured(self) -> Callable[[], Tensor]:
        """Return the whole step as one CUDA graph, as --train.cuda-graph does."""
        graphed = StaticCudaGraph(lambda *batch: [self()], self.batch[0].device)
        return lambda: graphed(*self.batch)[0].clone()


def rows(options: Options) -> Iterator[Row]:
    """Race our step, with and without torch.compile, against theirs."""
    # a compilation takes a minute on slow cores
    on_gpu = options.device.type == "cuda"
    for work in (QUICK,) if options.quick else (FULL, LARGE) if on_gpu else (FULL,):
        yield from measure(options, work, compiled=not options.quick)


def measure(options: Options, work: Workload, compiled: bool = True) -> Iterator[Row]:
    """Measure as `rows`, at any size."""
    what = describe(work)
    device = options.device
    precision: Precision = "bf16" if pick_precision(device, "auto") == "bf16" else "fp32"
    torch.manual_seed(0)
    model = TokenModel(work).to(device)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    sequence = work.sample(work.sequence_length + 1, device)
    batch = (sequence[:, :-1].contiguous(), sequence[:, 1:].contiguous())

    def our(mode: str | None) -> StepRunner:
        mine = TokenModel(work).to(device)
        mine.load_state_dict(weights)
        runner = compile_model(mine, mine.transformer.layers, mode, whole) if mode else mine
        return StepRunner(mine, runner, batch, precision)

    def their(
        attention: Attention, precision: Precision, mode: str | None, wrap: Wrap = unchanged
    ) -> StepRunner:
        peer = hugging_face.llama(work.config, work.sequence_length, work.vocab_size, attention).to(
            device
        )
        hugging_face.copy_weights(peer, model)
        runner = compile_model(peer, peer.model.layers, mode, whole) if mode else wrap(peer)
        return StepRunner(peer, hugging_face.loss_of(runner), batch, precision)

    gradient_batch = batch[0][:GRADIENT_SEQUENCES], batch[1][:GRADIENT_SEQUENCES]
    check_gradients(model, gradient_batch)
    on_gpu = device.type == "cuda"
    # every captured graph keeps a step's memory for itself, and for a long step launches are
    # negligible
    whole = work is not LARGE
    use_graphs = on_gpu and whole
    modes = {"compile" if whole else "compile by layers": "default"}
    if use_graphs:
        modes["compile, CUDA graphs"] = "reduce-overhead"
    ours: dict[str, Callable[[], Tensor]] = {f"ours, {precision}": our(None)}
    if use_graphs:
        ours[f"ours, {precision}, one CUDA graph"] = our(None).captured()
    # eager scores of 32k tokens do not fit on a GPU: there the reference is SDPA in fp32
    exact: Attention = "sdpa" if on_gpu else "eager"
    theirs: dict[str, Callable[[], Tensor]] = {
        name_of(exact, "fp32"): their(exact, "fp32", None),
        name_of("sdpa", precision): their("sdpa", precision, None),
    }
    if compiled:
        for name, mode in modes.items():
            ours[f"ours, {precision}, {name}"] = our(mode)
            if use_graphs and mode == "default":
                ours[f"ours, {precision}, compile, one CUDA graph"] = our(mode).captured()
            theirs[f"{name_of('sdpa', precision)}, {name}"] = their("sdpa", precision, mode)
        if not on_gpu:  # on CPUs it can be faster than SDPA for short sequences
            name = f"{name_of('eager', precision)}, compile"
            theirs[name] = their("eager", precision, "default")
    if on_gpu:
        name = f"{name_of('sdpa', precision)}, Liger-Kernel"
        try:
            check_gradients(model, gradient_batch, wrap=hugging_face.with_liger)
            theirs[name] = their("sdpa", precision, None, hugging_face.with_liger)
        except ImportError:
            yield missing_row("training", what, name, "liger-kernel")
        except Exception as problem:
            yield Row("training", what, name, "", note=f"failed: {reason(problem)}")
    for group in (ours, theirs):
        for name, why in drop_broken(group).items():
            yield Row("training", what, name, "", note=f"failed: {why}")
    runners = ours | theirs
    check_losses(runners, name_of(exact, "fp32"))
    if on_gpu:
        torch.cuda.empty_cache()  # a captured graph cannot use the allocator's cached memory
    product = Product(precision, device, roofline.sizes(device, options.quick)[1])
    limits: dict[str, Callable[[], object]] = {"product": product}
    if not on_gpu:
        limits[CEILING] = LeastStep(our(None))
    seconds = race(runners | limits, options.rounds, warmup=1, device=device)

    tokens = work.batch_size * work.sequence_length
    best = min(ours, key=lambda name: median(seconds[name]))
    targets = targets_of(theirs, work, on_gpu)
    selected = {name: seconds[name] for name in [best, *theirs]}
    notes = {name: f"ours: {best.removeprefix('ours, ')}" for name in theirs}
    yield from compare(
        "training", what, selected, targets, best, unit="tokens/s", amount=tokens, notes=notes
    )
    for name in ours:
        rate = tokens / median(seconds[name])
        yield value_row("training", what, "tokens/s", rate, f"({name})", rounds=options.rounds)
    yield share_of_product(what, work, product, seconds[best], seconds["product"])
    if not on_gpu:
        yield share_of_ceiling("training", what, seconds[best], seconds[CEILING], CEILING)


def compile_model(model: Any, layers: Iterable[Any], mode: str, whole: bool) -> Any:
    """Compile a model, or each of its layers: equal layers are compiled once, which takes less
    time, and embedding and loss stay uncompiled."""
    if whole:
        return torch.compile(model, mode=mode)
    for layer in layers:
        layer.compile(mode=mode)
    return model


def targets_of(
    theirs: Iterable[str], work: Workload, on_gpu: bool
) -> dict[str, tuple[float, float]]:
    """Return target and stretch against each of theirs that has one."""
    targets = {name_of("eager", "fp32"): (3.5, 6.0)} if not on_gpu else {}
    for name in theirs:
        if "compile" in name:
            # on a CPU both wait for the same products most of the time: see the ceiling
            targets[name] = (1.0, 1.4)
            if on_gpu:
                small = (1.2, 2.0) if "graphs" in name else (2.0, 5.0)
                targets[name] = (1.1, 1.35) if work is LARGE else small
        elif on_gpu and work is LARGE and "fp32" not in name and "Liger" not in name:
            targets[name] = (1.8, 2.5)
    return targets


def name_of(attention: Attention, precision: Precision) -> str:
    """Name a Llama of theirs."""
    return f"Hugging Face {'SDPA' if attention == 'sdpa' else attention}, {precision}"


def describe(work: Workload) -> str:
    """Name a step by its size."""
    count = sum(p.numel() for p in TokenModel(work).parameters())
    return f"step, {count / 1e6:.1f}M parameters, {work.batch_size} x {work.sequence_length} tokens"


def unchanged(peer: Any) -> Callable[..., Any]:
    """Wrap a model in nothing."""
    return peer


def check_gradients(
    model: TokenModel,
    batch: tuple[Tensor, Tensor],
    tolerance: float = 1e-2,
    wrap: Wrap = unchanged,
) -> None:
    """Raise Incorrect unless, from the same weights, both have the same loss and gradients."""
    work = model.work
    peer = hugging_face.llama(work.config, work.sequence_length, work.vocab_size, "eager")
    peer.to(batch[0].device)
    hugging_face.copy_weights(peer, model)
    ours = StepRunner(model, model, batch, "fp32").gradients()
    theirs = StepRunner(peer, hugging_face.loss_of(wrap(peer)), batch, "fp32").gradients()
    if not torch.isclose(ours, theirs, rtol=1e-3):
        raise Incorrect(
            f"our loss is {ours:.5f} and Hugging Face's {theirs:.5f}, at the same weights"
        )
    for number, (their, our, part) in enumerate(hugging_face.matching_weights(peer, model)):
        assert their.grad is not None and our.grad is not None
        error = (our.grad[part] - their.grad).norm() / their.grad.norm()
        if not error < tolerance:
            raise Incorrect(f"the gradient of weight {number} is {error:.1%} off Hugging Face's")
    model.zero_grad(set_to_none=True)


def check_losses(
    runners: Mapping[str, Callable[[], Tensor]], reference: str, steps: int = 3
) -> None:
    """Take `steps` steps with each runner; raise Incorrect unless all losses match the
    reference's."""
    all_losses = {name: [float(runner()) for _ in range(steps)] for name, runner in runners.items()}
    exact = all_losses[reference]
    for name, losses in all_losses.items():
        slack = 2e-2 if "bf16" in name else 2e-3
        if not all(abs(a - b) < slack * a for a, b in zip(exact, losses, strict=True)):
            raise Incorrect(f"losses of {name} are {losses}, and those of {reference} {exact}")


class LeastStep:
    """What no implementation of a step can leave out: its products, and the optimizer's part."""

    def __init__(self, step: StepRunner) -> None:
        self.step = step
        self.products = ProductsOf(step.gradients)

    def __call__(self) -> None:
        self.products()
        clip_grad_norm_(self.step.parameters, 1.0)
        self.step.optimizer.step()


class Product:
    """One large matrix product: the FLOP/s that the machine reaches at best."""

    def __init__(self, precision: Precision, device: torch.device, size: int) -> None:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.left, self.right = torch.randn(2, size, size, device=device, dtype=dtype)
        self.flops = 2 * size**3

    def __call__(self) -> Tensor:
        return self.left @ self.right


def share_of_product(
    what: str, work: Workload, product: Product, step: list[float], alone: list[float]
) -> Row:
    """Compute the FLOP/s of a step's matrix products as a share of those of one large product.

    step, alone: seconds of the step and of the product in the same rounds.
    """
    flops = matrix_flops(work)
    rate, peak = flops / median(step), product.flops / median(alone)
    share = median(flops / s * a / product.flops for s, a in zip(step, alone, strict=True))
    note = f"{rate / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s"
    dtype = str(product.left.dtype).removeprefix("torch.")
    target, stretch = (None, None) if product.left.is_cuda else (45.0, 65.0)
    return value_row(
        "training", what, "%", 100 * share, f"(one product of {len(product.left)}, {dtype})",
        target=target, stretch=stretch, rounds=len(step), note=note,
    )  # fmt: skip


def matrix_flops(work: Workload) -> int:
    """Count the FLOPs of a step's matrix products, forward and backward.

    A weight of a linear layer takes two for each token forward and four backward; attention
    multiplies visible blocks alone, frame by frame.
    """
    model, config = TokenModel(work), work.config
    linear = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    linear -= model.embed.weight.numel()  # looked up, not multiplied
    frames = config.context_frames
    visible = frames * (frames + 1) // 2 * work.frame_tokens**2
    attention = config.num_layers * 4 * config.dim * visible
    return work.batch_size * (6 * linear * work.sequence_length + 3 * attention)
