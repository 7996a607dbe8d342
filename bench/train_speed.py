"""A step of training, forward to AdamW, against Hugging Face's Llama of the same sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from bench import roofline
from bench.pairs import Options, Row, Wrong, compare, drop_broken, missing, race, reason, value
from bench.peers import hugging_face
from bench.peers.hugging_face import Attention
from kernels import linear_cross_entropy
from models.layers.transformer import Transformer, TransformerConfig
from models.world import Arithmetic, arithmetic
from pipeline.device import pick_precision
from pipeline.graphed import Graphed

Loss = Callable[[Tensor, Tensor], Tensor]
Change = Callable[[Any], Callable[..., Any]]
"""Of a model of theirs: what is called instead of it."""


@dataclass(frozen=True)
class Work:
    """What a step trains, and on how much."""

    config: TransformerConfig
    vocabulary: int
    grid: tuple[int, int]
    """Rows and columns of a frame's tokens; a sequence is as many frames as the context."""
    batch: int = 1

    @property
    def frame(self) -> int:
        """Tokens of a frame."""
        return self.grid[0] * self.grid[1]

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.config.context * self.frame

    def sample(self, count: int, device: torch.device) -> Tensor:
        """(batch, count) tokens at random."""
        return torch.randint(self.vocabulary, (self.batch, count), device=device)


def sized(width: int, layers: int, heads: int, hidden: int, frames: int) -> TransformerConfig:
    """Llama's layers, which do not norm queries and keys."""
    return TransformerConfig(width, layers, heads, hidden, context=frames, qk_norm=False)


FULL = Work(sized(256, 8, 4, 704, frames=4), 1024, (8, 8), batch=8)
# what is trained on a GPU: 150 M parameters, 32k tokens a step
LARGE = Work(sized(576, 24, 9, 2688, frames=4), 1024, (16, 16), batch=32)
GRADED = 2  # sequences that gradients are compared on
QUICK = Work(sized(128, 2, 4, 352, frames=4), 512, (4, 8), batch=4)


class TokenModel(nn.Module):
    """Our transformer as a causal language model over the tokens of frames in a row.

    A token sees all before it in its frame and in those in view, which are the whole sequence:
    this is Llama, but for the angles of the places.

    Letters: B sequences, S tokens, D width, V vocabulary.
    """

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work
        width, (rows, columns) = work.config.width, work.grid
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        self.embed = nn.Embedding(work.vocabulary, width)
        self.transformer = Transformer(work.config, places, causal_inside=True)
        self.head = nn.Linear(width, work.vocabulary, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of the next tokens: (B, S), (B, S) -> ()."""
        x = self.transformer(self.embed(tokens))[0]
        losses, _ = linear_cross_entropy(x.flatten(0, 1), self.head.weight, targets.flatten())
        return losses.mean()

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, S) -> (B, S, V)."""
        return self.head(self.transformer(self.embed(tokens))[0])


class Trainer:
    """Takes steps on one batch; calling it gives the loss before the step."""

    def __init__(
        self, model: nn.Module, loss: Loss, batch: tuple[Tensor, Tensor], precision: Arithmetic
    ) -> None:
        self.parameters = list(model.parameters())
        self.loss, self.batch = loss, batch
        self.precision: Arithmetic = precision
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True,
            capturable=batch[0].is_cuda,
        )  # fmt: skip

    def gradients(self) -> Tensor:
        """Forward and backward."""
        with arithmetic(self.batch[0].device, self.precision):
            loss = self.loss(*self.batch)
        loss.backward()
        return loss.detach()

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.gradients()
        clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return loss.clone()  # a CUDA graph writes the next one to the same place

    def recorded(self) -> Callable[[], Tensor]:
        """The whole step as one CUDA graph, as --train.graph does."""
        graphed = Graphed(lambda *batch: [self()], self.batch[0].device)
        return lambda: graphed(*self.batch)[0].clone()


def rows(options: Options) -> Iterator[Row]:
    """Race our step, with and without torch.compile, against theirs."""
    # a compilation takes a minute on slow cores
    on_gpu = options.device.type == "cuda"
    for work in (QUICK,) if options.quick else (FULL, LARGE) if on_gpu else (FULL,):
        yield from measure(options, work, compiled=not options.quick)


def measure(options: Options, work: Work, compiled: bool = True) -> Iterator[Row]:
    """As `rows`, at any size."""
    what = describe(work)
    device = options.device
    precision: Arithmetic = "bf16" if pick_precision(device, "auto") == "bf16" else "fp32"
    torch.manual_seed(0)
    model = TokenModel(work).to(device)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    sequence = work.sample(work.length + 1, device)
    batch = (sequence[:, :-1].contiguous(), sequence[:, 1:].contiguous())

    def our(mode: str | None) -> Trainer:
        mine = TokenModel(work).to(device)
        mine.load_state_dict(weights)
        runner = compiling(mine, mine.transformer.layers, mode, whole) if mode else mine
        return Trainer(mine, runner, batch, precision)

    def their(
        attention: Attention, kind: Arithmetic, mode: str | None, change: Change = as_it_comes
    ) -> Trainer:
        peer = hugging_face.llama(work.config, work.length, work.vocabulary, attention).to(device)
        hugging_face.adopt(peer, model)
        runner = compiling(peer, peer.model.layers, mode, whole) if mode else change(peer)
        return Trainer(peer, hugging_face.loss_of(runner), batch, kind)

    few = batch[0][:GRADED], batch[1][:GRADED]
    check_gradients(model, few)
    on_gpu = device.type == "cuda"
    # every recording keeps a step's memory for itself, and where a step takes a tenth of a second
    # its launches count for nothing
    whole = work is not LARGE
    recorded = on_gpu and whole
    modes = {"compile" if whole else "compile by layers": "default"}
    if recorded:
        modes["compile, CUDA graphs"] = "reduce-overhead"
    ours: dict[str, Callable[[], Tensor]] = {f"ours, {precision}": our(None)}
    if recorded:
        ours[f"ours, {precision}, one CUDA graph"] = our(None).recorded()
    # scores of 32k tokens do not fit a GPU eleven times over: there theirs is exact without them
    exact: Attention = "sdpa" if on_gpu else "eager"
    theirs: dict[str, Callable[[], Tensor]] = {
        name_of(exact, "fp32"): their(exact, "fp32", None),
        name_of("sdpa", precision): their("sdpa", precision, None),
    }
    if compiled:
        for name, mode in modes.items():
            ours[f"ours, {precision}, {name}"] = our(mode)
            if recorded and mode == "default":
                ours[f"ours, {precision}, compile, one CUDA graph"] = our(mode).recorded()
            theirs[f"{name_of('sdpa', precision)}, {name}"] = their("sdpa", precision, mode)
        if not on_gpu:  # on CPUs it can be faster than SDPA, for sequences as short as these
            name = f"{name_of('eager', precision)}, compile"
            theirs[name] = their("eager", precision, "default")
    if on_gpu:
        name = f"{name_of('sdpa', precision)}, Liger-Kernel"
        try:
            check_gradients(model, few, change=hugging_face.with_liger)
            theirs[name] = their("sdpa", precision, None, hugging_face.with_liger)
        except ImportError:
            yield missing("training", what, name, "liger-kernel")
        except Exception as problem:
            yield Row("training", what, name, "", note=f"broken off, {reason(problem)}")
    for group in (ours, theirs):
        for name, why in drop_broken(group).items():
            yield Row("training", what, name, "", note=f"broken off, {why}")
    runners = ours | theirs
    check_losses(runners, name_of(exact, "fp32"))
    if on_gpu:
        torch.cuda.empty_cache()  # a recording cannot take what is kept for those that have none
    product = Product(precision, device, roofline.sizes(device, options.quick)[1])
    seconds = race(runners | {"product": product}, options.rounds, warmup=1, device=device)

    tokens = work.batch * work.length
    best = min(ours, key=lambda name: median(seconds[name]))
    bars = bars_of(theirs, work, on_gpu)
    raced = {name: seconds[name] for name in [best, *theirs]}
    notes = {name: f"ours: {best.removeprefix('ours, ')}" for name in theirs}
    yield from compare(
        "training", what, raced, bars, best, unit="tokens/s", amount=tokens, notes=notes
    )
    for name in ours:
        rate = tokens / median(seconds[name])
        yield value("training", what, "tokens/s", rate, f"({name})", rounds=options.rounds)
    yield share_of_product(what, work, product, seconds[best], seconds["product"])


def compiling(model: Any, layers: Iterable[Any], mode: str, whole: bool) -> Any:
    """Have a model compiled, or each of its layers: of many that are alike only one is, in less
    time, and embedding and loss are left as they come."""
    if whole:
        return torch.compile(model, mode=mode)
    for layer in layers:
        layer.compile(mode=mode)
    return model


def bars_of(theirs: Iterable[str], work: Work, on_gpu: bool) -> dict[str, tuple[float, float]]:
    """Bar and aim against each of theirs that has one."""
    bars = {name_of("eager", "fp32"): (3.5, 6.0)} if not on_gpu else {}
    for name in theirs:
        if "compile" in name:
            bars[name] = (1.4, 2.0)
            if on_gpu:
                small = (1.2, 2.0) if "graphs" in name else (2.0, 5.0)
                bars[name] = (1.1, 1.35) if work is LARGE else small
        elif on_gpu and work is LARGE and "fp32" not in name and "Liger" not in name:
            bars[name] = (1.8, 2.5)
    return bars


def name_of(attention: Attention, kind: Arithmetic) -> str:
    """Name a Llama of theirs."""
    return f"Hugging Face {'SDPA' if attention == 'sdpa' else attention}, {kind}"


def describe(work: Work) -> str:
    """Name a step by its size."""
    count = sum(p.numel() for p in TokenModel(work).parameters())
    return f"step, {count / 1e6:.1f}M parameters, {work.batch} x {work.length} tokens"


def as_it_comes(peer: Any) -> Callable[..., Any]:
    return peer


def check_gradients(
    model: TokenModel,
    batch: tuple[Tensor, Tensor],
    near: float = 1e-2,
    change: Change = as_it_comes,
) -> None:
    """Raise Wrong unless, from the same weights, both have the same loss and gradients."""
    work = model.work
    peer = hugging_face.llama(work.config, work.length, work.vocabulary, "eager")
    peer.to(batch[0].device)
    hugging_face.adopt(peer, model)
    ours = Trainer(model, model, batch, "fp32").gradients()
    theirs = Trainer(peer, hugging_face.loss_of(change(peer)), batch, "fp32").gradients()
    if not torch.isclose(ours, theirs, rtol=1e-3):
        raise Wrong(f"our loss is {ours:.5f} and Hugging Face's {theirs:.5f}, at the same weights")
    for number, (their, our, part) in enumerate(hugging_face.pairs(peer, model)):
        assert their.grad is not None and our.grad is not None
        off = (our.grad[part] - their.grad).norm() / their.grad.norm()
        if not off < near:
            raise Wrong(f"the gradient of weight {number} is {off:.1%} off Hugging Face's")
    model.zero_grad(set_to_none=True)


def check_losses(
    runners: Mapping[str, Callable[[], Tensor]], reference: str, steps: int = 3
) -> None:
    """Take `steps` steps with everyone; raise Wrong unless all losses go as the reference's do."""
    seen = {name: [float(runner()) for _ in range(steps)] for name, runner in runners.items()}
    exact = seen[reference]
    for name, losses in seen.items():
        slack = 2e-2 if "bf16" in name else 2e-3
        if not all(abs(a - b) < slack * a for a, b in zip(exact, losses, strict=True)):
            raise Wrong(f"losses of {name} go {losses}, and those of {reference} {exact}")


class Product:
    """One large matrix product: what the machine can do when nothing else is in the way."""

    def __init__(self, precision: Arithmetic, device: torch.device, size: int) -> None:
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        self.left, self.right = torch.randn(2, size, size, device=device, dtype=kind)
        self.flops = 2 * size**3

    def __call__(self) -> Tensor:
        return self.left @ self.right


def share_of_product(
    what: str, work: Work, product: Product, step: list[float], alone: list[float]
) -> Row:
    """Matrix products of a step over its time, as a share of the rate of one large product.

    step, alone: seconds of the step and of the product in the same rounds.
    """
    flops = matrix_flops(work)
    rate, ceiling = flops / median(step), product.flops / median(alone)
    share = median(flops / s * a / product.flops for s, a in zip(step, alone, strict=True))
    note = f"{rate / 1e9:.0f} of {ceiling / 1e9:.0f} GFLOP/s"
    kind = str(product.left.dtype).removeprefix("torch.")
    bar, aim = (None, None) if product.left.is_cuda else (45.0, 65.0)
    return value(
        "training", what, "%", 100 * share, f"(one product of {len(product.left)}, {kind})",
        bar=bar, aim=aim, rounds=len(step), note=note,
    )  # fmt: skip


def matrix_flops(work: Work) -> int:
    """Multiplications and additions in the matrix products of a step, forward and backward.

    A weight of a linear layer takes two of each token forward and four backward; attention
    multiplies what is in view, frame by frame.
    """
    model, config = TokenModel(work), work.config
    linear = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    linear -= model.embed.weight.numel()  # looked up, not multiplied
    frames = config.context
    in_view = frames * (frames + 1) // 2 * work.frame**2
    attention = config.layers * 4 * config.width * in_view
    return work.batch * (6 * linear * work.length + 3 * attention)
