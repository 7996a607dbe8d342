"""Greedy decoding from one prompt, against Hugging Face's generate with the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from torch import Tensor

from bench.areas.train_speed import FULL, LARGE, QUICK, TokenModel, Workload
from bench.peers import hugging_face
from bench.peers.hugging_face import Decoding
from bench.races.pairs import EXACT, INT8, Incorrect, Options, Row, compare, race
from models.layers.inference import use_column_major
from models.layers.int8 import quantize_linears
from pipeline.cuda_graph import CudaGraphed
from pipeline.device import pick_precision
from pipeline.inference.aot_inductor import pick_compile_fn

NEW_TOKENS = 128  # of the large model; uncompiled, theirs takes seconds for them
TARGETS = {EXACT: (1.3, 3.0), INT8: (2.5, 6.0)}
# on a GPU, against theirs uncompiled and compiled
GPU_TARGETS = {"dynamic cache": (10.0, 40.0), "static cache + compile": (1.5, 4.0)}
Write = Callable[..., tuple[Tensor, list[Tensor], list[Tensor]]]


def rows(options: Options) -> Iterator[Row]:
    """Race our decoding, exact and with int8 weights, against theirs."""
    if options.device.type == "cuda" and not options.quick:
        yield from measure(options, replace(FULL, batch_size=1))
        yield from measure(
            options, replace(LARGE, batch_size=1, grid=FULL.grid), new_tokens=NEW_TOKENS
        )
        return
    work = QUICK if options.quick else FULL
    yield from measure(options, replace(work, batch_size=1), compiled=not options.quick)


def measure(
    options: Options, work: Workload, compiled: bool = True, new_tokens: int | None = None
) -> Iterator[Row]:
    """Measure as `rows`, at any size: one frame is the prompt, and `new_tokens` follow, by default
    the rest of the sequence."""
    new_tokens = new_tokens or work.sequence_length - work.frame_tokens
    torch.manual_seed(0)
    on_gpu = options.device.type == "cuda"
    model = TokenModel(work).to(options.device).eval()
    use_column_major(model)  # as load_world does
    if on_gpu:  # not the buffers, such as the angles
        for weight in model.parameters():
            weight.data = weight.data.bfloat16()
    count = sum(p.numel() for p in model.parameters())
    what = f"{count / 1e6:.1f}M parameters, {work.frame_tokens} + {new_tokens} tokens"
    prompt = work.sample(work.frame_tokens, options.device)

    write: Write = partial(write_frame, model)
    if on_gpu:  # one CUDA graph a frame
        write = CudaGraphed(write, options.device)
    ours: dict[str, Callable[[], Tensor]] = {
        EXACT: lambda: decode_ours(model, prompt, new_tokens, write)
    }
    if not on_gpu:  # int8 weights are for CPUs
        int8_model = quantized(model)
        ours[INT8] = lambda: decode_ours(int8_model, prompt, new_tokens)
    if compiled:
        compiler = pick_compile_fn(options.device)
        model.transformer.compile_steps(compiler)
        if not on_gpu:
            int8_model.transformer.compile_steps(compiler)
    for name, runner in ours.items():
        exact = 0.2 if on_gpu else 2e-3
        check_greedy(name, model, runner(), slack=0.3 if name == INT8 else exact)

    def their(dtype: torch.dtype, mode: Decoding) -> Callable[[], Tensor]:
        peer = hugging_face.llama(work.config, work.sequence_length, work.vocab_size, "sdpa")
        hugging_face.copy_weights(peer.to(options.device), model)
        return hugging_face.decoder(peer.to(dtype).eval(), prompt, new_tokens, mode)

    # GPU time is expensive: only the two that have targets there
    modes: list[Decoding] = ["dynamic cache"] if on_gpu else ["dynamic cache", "static cache"]
    if compiled:
        modes.append("static cache + compile")
    dtypes = {"bf16": torch.bfloat16} if on_gpu else {"fp32": torch.float32}
    if pick_precision(options.device, "auto") == "bf16":
        dtypes["bf16"] = torch.bfloat16
    theirs = {
        f"Hugging Face {name}, {mode}": their(dtype, mode)
        for name, dtype in dtypes.items()
        for mode in modes
    }
    for name, runner in theirs.items():
        check_greedy(name, model, runner(), slack=0.2 if "bf16" in name else 2e-3)
    how = ", compiled" if compiled else ""
    seconds = race(ours | theirs, options.rounds, warmup=1, device=options.device)
    for name in ours:
        # exact weights are compared with exact ones; int8 weights with all
        fair = [peer for peer in theirs if name == INT8 or on_gpu or "fp32" in peer]
        best = min(fair, key=lambda peer: median(seconds[peer]))
        selected = {peer: seconds[peer] for peer in [name, *fair]}
        targets = {best: TARGETS[name]}
        if on_gpu:
            targets = {
                peer: GPU_TARGETS[mode] for peer in fair for mode in GPU_TARGETS if mode in peer
            }
        yield from compare(
            "decode", f"{what}, {name}{how}", selected, targets, name,
            unit="tokens/s", amount=new_tokens, notes={best: "the fastest peer"},
        )  # fmt: skip


@torch.inference_mode()
def decode_ours(
    model: TokenModel, prompt: Tensor, new_tokens: int, write: Write | None = None
) -> Tensor:
    """Decode greedily, each token from those before it: prompt (1, S) -> (1, S + new_tokens).

    The prompt is whole frames.  A frame is written into a static cache, as world models do.
    """
    write = write or partial(write_frame, model)
    out, cache = model.transformer(model.embed(prompt))
    tokens = [model.head(out[:, -1:]).argmax(-1)]
    for _ in range(-(-(new_tokens - 1) // model.work.frame_tokens)):
        static_cache = model.transformer.make_static_cache(cache)
        written, static_cache.rotated, static_cache.values = write(
            tokens[-1][:, -1:], static_cache.rotated, static_cache.values, static_cache.bounds
        )
        tokens.append(written)
        cache = model.transformer.append_block(static_cache)
    return torch.cat([prompt, *tokens], dim=1)[:, : prompt.shape[1] + new_tokens]


def write_frame(
    model: TokenModel, token: Tensor, rotated: list[Tensor], values: list[Tensor], bounds: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Write a frame that begins with `token`, (1, 1); return each token's successor, (1, S)."""
    tokens = []
    for position, row in enumerate(model.transformer.rows.split(1)):
        x = model.embed(token)
        out = model.transformer.write_token(x, rotated, values, row, bounds[position])
        token = model.head(out).argmax(-1)
        tokens.append(token)
    return torch.cat(tokens, dim=1), rotated, values


def quantized(model: TokenModel) -> TokenModel:
    """Return a copy whose linear layers hold int8 weights."""
    int8_model = copy.deepcopy(model)
    quantize_linears(int8_model)
    return int8_model


@torch.inference_mode()
def check_greedy(name: str, model: TokenModel, tokens: Tensor, slack: float) -> None:
    """Raise Incorrect unless each token is the likeliest after those before it, without any cache.

    tokens: (1, S), a whole sequence.  slack: by how much a logit may be below the highest, in
    standard deviations of the logits, for sums in another order or with fewer bits.
    """
    logits = model.logits(tokens)[:, model.work.frame_tokens - 1 : -1].float()
    chosen = tokens[:, model.work.frame_tokens :, None]
    worst = (logits.amax(-1) - logits.gather(-1, chosen)[..., 0]).max() / logits.std()
    if not worst <= slack:
        raise Incorrect(f"{name}: a token is {worst:.3f} deviations less likely than the likeliest")
