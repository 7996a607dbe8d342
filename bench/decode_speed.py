"""Token by token from one prompt, against Hugging Face's generate with the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from torch import Tensor

from bench.pairs import EXACT, INT8, Options, Row, Wrong, compare, race
from bench.peers import hugging_face
from bench.peers.hugging_face import Decoding
from bench.train_speed import FULL, LARGE, QUICK, TokenModel, Work
from models.layers.inference import lay_out_for_writing
from models.layers.int8 import quantise_linears
from pipeline.device import pick_precision
from pipeline.inference.aot_inductor import compiler_for
from pipeline.inference.recorded import Recorded

NEW = 128  # tokens of the large model, which takes seconds for them as theirs comes
BARS = {EXACT: (1.3, 3.0), INT8: (2.5, 6.0)}
# on a GPU, against theirs as it comes and compiled
GPU_BARS = {"dynamic cache": (10.0, 40.0), "static cache + compile": (1.5, 4.0)}
Write = Callable[..., tuple[Tensor, list[Tensor], list[Tensor]]]


def rows(options: Options) -> Iterator[Row]:
    """Race our decoding, exact and with int8 weights, against theirs."""
    if options.device.type == "cuda" and not options.quick:
        yield from measure(options, replace(FULL, batch=1))
        yield from measure(options, replace(LARGE, batch=1, grid=FULL.grid), new=NEW)
        return
    work = QUICK if options.quick else FULL
    yield from measure(options, replace(work, batch=1), compiled=not options.quick)


def measure(
    options: Options, work: Work, compiled: bool = True, new: int | None = None
) -> Iterator[Row]:
    """As `rows`, at any size: a quarter of the sequence, one frame, is the prompt, and `new` tokens
    follow, the rest of it if not said."""
    new = new or work.length - work.frame
    torch.manual_seed(0)
    on_gpu = options.device.type == "cuda"
    model = TokenModel(work).to(options.device).eval()
    lay_out_for_writing(model)  # as load_world does
    if on_gpu:  # but for tables, such as that of angles
        for weight in model.parameters():
            weight.data = weight.data.bfloat16()
    count = sum(p.numel() for p in model.parameters())
    what = f"{count / 1e6:.1f}M parameters, {work.frame} + {new} tokens"
    prompt = work.sample(work.frame, options.device)

    write: Write = partial(write_frame, model)
    if on_gpu:  # one CUDA graph a frame
        write = Recorded(write, options.device)
    ours: dict[str, Callable[[], Tensor]] = {EXACT: lambda: decode_ours(model, prompt, new, write)}
    if not on_gpu:  # where they are for
        narrow = quantised(model)
        ours[INT8] = lambda: decode_ours(narrow, prompt, new)
    if compiled:
        compiler = compiler_for(options.device)
        model.transformer.compile_steps(compiler)
        if not on_gpu:
            narrow.transformer.compile_steps(compiler)
    for name, runner in ours.items():
        exact = 0.2 if on_gpu else 2e-3
        check_greedy(name, model, runner(), slack=0.3 if name == INT8 else exact)

    def their(kind: torch.dtype, how: Decoding) -> Callable[[], Tensor]:
        peer = hugging_face.llama(work.config, work.length, work.vocabulary, "sdpa")
        hugging_face.adopt(peer.to(options.device), model)
        return hugging_face.decoder(peer.to(kind).eval(), prompt, new, how)

    # seconds of a GPU are dear: the two that have bars there
    ways: list[Decoding] = ["dynamic cache"] if on_gpu else ["dynamic cache", "static cache"]
    if compiled:
        ways.append("static cache + compile")
    kinds = {"bf16": torch.bfloat16} if on_gpu else {"fp32": torch.float32}
    if pick_precision(options.device, "auto") == "bf16":
        kinds["bf16"] = torch.bfloat16
    theirs = {
        f"Hugging Face {kind}, {how}": their(dtype, how)
        for kind, dtype in kinds.items()
        for how in ways
    }
    for name, runner in theirs.items():
        check_greedy(name, model, runner(), slack=0.2 if "bf16" in name else 2e-3)
    how = ", compiled" if compiled else ""
    seconds = race(ours | theirs, options.rounds, warmup=1, device=options.device)
    for name in ours:
        # with exact weights against exact ones; what has fewer bits, against all
        fair = [peer for peer in theirs if name == INT8 or on_gpu or "fp32" in peer]
        best = min(fair, key=lambda peer: median(seconds[peer]))
        raced = {peer: seconds[peer] for peer in [name, *fair]}
        bars = {best: BARS[name]}
        if on_gpu:
            bars = {peer: GPU_BARS[way] for peer in fair for way in GPU_BARS if way in peer}
        yield from compare(
            "decode", f"{what}, {name}{how}", raced, bars, name,
            unit="tokens/s", amount=new, notes={best: "the fastest peer"},
        )  # fmt: skip


@torch.inference_mode()
def decode_ours(model: TokenModel, prompt: Tensor, new: int, write: Write | None = None) -> Tensor:
    """Decode greedily, each token from those before it: prompt (1, S) -> (1, S + new).

    The prompt is whole frames.  A frame is written into a draft of it, as world models do.
    """
    write = write or partial(write_frame, model)
    out, cache = model.transformer(model.embed(prompt))
    tokens = [model.head(out[:, -1:]).argmax(-1)]
    for _ in range(-(-(new - 1) // model.work.frame)):
        draft = model.transformer.draft(cache)
        written, draft.turned, draft.values = write(
            tokens[-1][:, -1:], draft.turned, draft.values, draft.bounds
        )
        tokens.append(written)
        cache = model.transformer.close(draft)
    return torch.cat([prompt, *tokens], dim=1)[:, : prompt.shape[1] + new]


def write_frame(
    model: TokenModel, token: Tensor, turned: list[Tensor], values: list[Tensor], bounds: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Write a frame that begins with `token`, (1, 1): the tokens after each of its own, (1, S)."""
    tokens = []
    for position, row in enumerate(model.transformer.rows.split(1)):
        x = model.embed(token)
        out = model.transformer.write(x, turned, values, row, bounds[position])
        token = model.head(out).argmax(-1)
        tokens.append(token)
    return torch.cat(tokens, dim=1), turned, values


def quantised(model: TokenModel) -> TokenModel:
    """A copy whose linear layers hold int8 weights."""
    narrow = copy.deepcopy(model)
    quantise_linears(narrow)
    return narrow


@torch.inference_mode()
def check_greedy(name: str, model: TokenModel, tokens: Tensor, slack: float) -> None:
    """Raise Wrong unless each token is the likeliest after those before it, without any cache.

    tokens: (1, S), a whole sequence.  slack: by how much a logit may be less than the highest, in
    deviations of the logits, for sums in another order or with fewer bits.
    """
    logits = model.logits(tokens)[:, model.work.frame - 1 : -1].float()
    chosen = tokens[:, model.work.frame :, None]
    worst = (logits.amax(-1) - logits.gather(-1, chosen)[..., 0]).max() / logits.std()
    if not worst <= slack:
        raise Wrong(f"{name}: a token is {worst:.3f} deviations less likely than the likeliest")
