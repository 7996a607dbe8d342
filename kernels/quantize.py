"""Nearest rows of a codebook without the matrix of distances, and what its EMA update needs.

Letters: R vectors, K rows of the codebook, D their width, P pieces of the sorted vectors.

A float32 number times a power of two is the sum of two float16 numbers to 22 bits, and products of
those are exact in float32, so that three products on tensor cores give one of float32 accuracy
(Ootomo and Yokota, arXiv:2203.03341).  Sums over the vectors of a code use a stable sort, in a
fixed order and without atomics: two runs agree to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.compile_check import CompileCase

# rows of a code that one program sums; a code of more rows has several programs
PIECE = 128


@triton.jit
def _power_below(peak):
    """Return the power of two at or below a positive float32."""
    return (peak.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def _split_codebook(
    codebook, peak, high, low, half, K, D,
    BLOCK: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Split rows of the codebook into two float16 each, scaled so that the largest is near 2^13;
    also store |e|^2 / 2."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, WHOLE)
    inside = (row < K)[:, None] & (column < D)[None]
    e = tl.load(codebook + row[:, None] * D + column[None], mask=inside, other=0.0).to(tl.float32)
    tl.store(half + row, tl.sum(e * e, axis=1) * 0.5, mask=row < K)
    scaled = e * (8192.0 / _power_below(tl.maximum(tl.load(peak), 1e-30)))
    first = scaled.to(tl.float16)
    offsets = row[:, None] * WIDE + column[None]
    kept = (row < K)[:, None] & (column < WIDE)[None]
    tl.store(high + offsets, first, mask=kept)
    tl.store(low + offsets, (scaled - first.to(tl.float32)).to(tl.float16), mask=kept)


@triton.jit
def _add_product(v_at, high_at, low_at, inside, known, scale, product, SPLIT: tl.constexpr):
    """Add a chunk of v e to the product, the small terms first."""
    v = tl.load(v_at, mask=inside, other=0.0).to(tl.float32) * scale
    v_high = v.to(tl.float16)
    e_high = tl.load(high_at, mask=known, other=0.0)
    if SPLIT:
        v_low = (v - v_high.to(tl.float32)).to(tl.float16)
        product = tl.dot(v_low, e_high.trans(), product)
    product = tl.dot(v_high, tl.load(low_at, mask=known, other=0.0).trans(), product)
    return tl.dot(v_high, e_high.trans(), product)


@triton.jit
def _nearest(
    vectors, high, low, half, peak, codes, R, K, D,
    WIDE: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    SPLIT: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Find argmin |e|^2 / 2 - v e for a tile of vectors, over the codebook tile by tile.

    SPLIT: vectors are float32, not narrower.  KEEP: they stay on the chip from tile to tile.
    """
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    vectors += first_row * D
    row, column, entry = tl.arange(0, ROWS), tl.arange(0, CHUNK), tl.arange(0, TILE)
    valid = first_row + row < R
    v_offset = row[:, None] * D + column[None]
    e_offset = entry[:, None] * WIDE + column[None]
    codebook_peak = tl.maximum(tl.load(peak), 1e-30)
    tallest = tl.zeros([ROWS], tl.float32)
    for start in range(0, WIDE, CHUNK):
        inside = valid[:, None] & (start + column < D)[None]
        v = tl.abs(tl.load(vectors + start + v_offset, mask=inside, other=0.0).to(tl.float32))
        # a value that is not finite affects its own row alone
        tallest = tl.maximum(tallest, tl.max(tl.where(v < float("inf"), v, 0.0), axis=1))
    power = _power_below(tl.maximum(tl.max(tallest, axis=0), codebook_peak * 2.0**-24))
    scale = 8192.0 / power
    unit = scale * (8192.0 / _power_below(codebook_peak))
    best = tl.full([ROWS], float("inf"), tl.float32)
    code = tl.zeros([ROWS], tl.int32)
    for first in range(0, K, TILE):
        known = first + entry < K
        product = tl.zeros([ROWS, TILE], tl.float32)
        if KEEP:
            for chunk in tl.static_range(0, WIDE, CHUNK):
                product = _add_product(
                    vectors + chunk + v_offset, high + chunk + e_offset,
                    low + chunk + e_offset, valid[:, None] & (chunk + column < D)[None],
                    known[:, None], scale, product, SPLIT,
                )  # fmt: skip
        else:
            for start in range(0, WIDE, CHUNK):
                product = _add_product(
                    vectors + start + v_offset, high + start + e_offset,
                    low + start + e_offset, valid[:, None] & (start + column < D)[None],
                    known[:, None], scale, product, SPLIT,
                )  # fmt: skip
        length = tl.load(half + first + entry, mask=known, other=float("inf")) * unit
        score, index = tl.min(
            length[None] - product, axis=1, return_indices=True, return_indices_tie_break_left=True
        )
        nearer = score < best  # the first of equals stays; false for NaN, so that codes are valid
        best = tl.where(nearer, score, best)
        code = tl.where(nearer, first + index, code)
        high += TILE * WIDE
        low += TILE * WIDE
    tl.store(codes + first_row + row, code, mask=valid)


@triton.jit
def _sum_piece(
    vectors, order, bounds, pieces, owner, partial, K, D,
    PIECE: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Sum up to PIECE vectors of one code, which are consecutive in `order`."""
    piece = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    code = tl.load(owner + piece)
    used = code < K  # else the range is empty: from 0 to 0
    begin = tl.load(bounds + code, mask=used, other=0)
    first = tl.load(pieces + code, mask=used, other=piece)
    begin += (piece - first) * PIECE
    end = tl.minimum(tl.load(bounds + code + 1, mask=used, other=0), begin + PIECE)
    total = tl.zeros([ROWS, CHUNK], tl.float32)
    for start in range(begin, end, ROWS):
        positions = start + tl.arange(0, ROWS)
        valid = positions < end
        row = tl.load(order + positions, mask=valid, other=0)
        inside = valid[:, None] & (column < D)[None]
        v = tl.load(vectors + row[:, None] * D + column[None], mask=inside, other=0.0)
        total += v.to(tl.float32)
    tl.store(partial + piece * D + column, tl.sum(total, axis=0), mask=used & (column < D))


@triton.jit
def _sum_pieces(partial, pieces, sums, D, CHUNK: tl.constexpr):
    """Sum the pieces of one code."""
    code = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    total = tl.zeros([CHUNK], tl.float32)
    begin = tl.load(pieces + code)
    for number in range(tl.load(pieces + code + 1) - begin):
        total += tl.load(partial + (begin + number) * D + column, mask=column < D, other=0.0)
    tl.store(sums + code * D + column, total, mask=column < D)


def _constants(**constants: int) -> dict[str, Any]:
    """Return a kernel's constants, untyped: Triton's own types want them wrapped."""
    return constants


def _next_power_of_2(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _cdiv(count: int, each: int) -> int:
    return -(-count // each)


def _padded_dim(width: int) -> int:
    """Return the width of a split codebook in memory: whole chunks, of 16 numbers at least."""
    return max(16, _next_power_of_2(width)) if width <= 64 else _cdiv(width, 64) * 64


def _launch_options(wide: int) -> dict[str, Any]:
    """Choose how `_nearest` runs on a codebook padded to `wide`.

    Three programs of 64 x 64 share a multiprocessor where products are short.  Wider vectors stay
    on the chip up to 128; beyond, they are loaded again for each tile of the codebook.
    """
    if wide <= 64:
        return _constants(ROWS=64, TILE=64, CHUNK=wide, KEEP=True, num_warps=4, num_stages=3)
    if wide <= 128:
        return _constants(ROWS=128, TILE=128, CHUNK=64, KEEP=True, num_warps=8, num_stages=2)
    return _constants(ROWS=128, TILE=128, CHUNK=32, KEEP=False, num_warps=8, num_stages=4)


@torch.library.custom_op("dreamstage::nearest_code", mutates_args=())
def _nearest_code(vectors: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    vectors, codebook = vectors.contiguous(), codebook.contiguous()
    (R, D), K = vectors.shape, len(codebook)
    sums = torch.zeros(K, D, device=codebook.device)
    if not R:
        empty = torch.empty(0, dtype=torch.int64, device=codebook.device)
        return empty, torch.zeros(K, dtype=torch.int64, device=codebook.device), sums
    codes = _nearest_codes(vectors, codebook)
    ordered, order = torch.sort(codes, stable=True)
    numbers = torch.arange(max(K + 1, _cdiv(R, PIECE) + K), device=codebook.device)
    bounds = torch.searchsorted(ordered, numbers[: K + 1].to(ordered.dtype))
    counts = bounds.diff()
    # pieces[k]: the first piece of code k; at most R / PIECE + K in all: counting them would
    # synchronize with the GPU
    pieces = torch.cat([counts.new_zeros(1), ((counts + (PIECE - 1)) // PIECE).cumsum(0)])
    P = _cdiv(R, PIECE) + K
    owner = torch.searchsorted(pieces[1:], numbers[:P], right=True)
    partial = torch.empty(P, D, device=codebook.device)
    chunk = min(128, _next_power_of_2(D))
    blocks, constants = _cdiv(D, chunk), _constants(PIECE=PIECE, ROWS=16, CHUNK=chunk)
    _sum_piece[(P, blocks)](vectors, order, bounds, pieces, owner, partial, K, D, **constants)
    constants = _constants(CHUNK=chunk, num_warps=1)
    _sum_pieces[(K, blocks)](partial, pieces, sums, D, **constants)
    return codes.long(), counts, sums


def _nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Find the nearest row of the codebook for each vector: (R,) int32."""
    (R, D), K = vectors.shape, len(codebook)
    wide = _padded_dim(D)
    high = torch.empty(K, wide, dtype=torch.float16, device=codebook.device)
    low, half = torch.empty_like(high), torch.empty(K, device=codebook.device)
    peak = codebook.abs().amax().float().reshape(1)
    whole = _next_power_of_2(wide)
    block = max(1, 4096 // whole)
    constants = _constants(BLOCK=block, WIDE=wide, WHOLE=whole)
    _split_codebook[(_cdiv(K, block),)](codebook, peak, high, low, half, K, D, **constants)
    codes = torch.empty(R, dtype=torch.int32, device=codebook.device)
    constants = _launch_options(wide) | {"WIDE": wide, "SPLIT": vectors.element_size() > 2}
    programs = _cdiv(R, constants["ROWS"])
    _nearest[(programs,)](vectors, high, low, half, peak, codes, R, K, D, **constants)
    return codes


@_nearest_code.register_fake
def _(vectors: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    K, D = codebook.shape
    return (
        vectors.new_empty(len(vectors), dtype=torch.int64),
        vectors.new_empty(K, dtype=torch.int64),
        vectors.new_empty(K, D, dtype=torch.float32),
    )


def nearest_code(vectors: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `kernels.nearest_code`.

    Codes are those of float32 arithmetic, the lowest index among equals; a vector that is not
    finite gets code 0.  Counts and sums are the same to the bit in every run.
    """
    return _nearest_code(vectors.detach(), codebook.detach())


_CODEBOOK = {"high": "*fp16", "low": "*fp16", "half": "*fp32", "peak": "*fp32"}


def _compile_case(wide: int, vectors: str, programs: int) -> CompileCase:
    options = _launch_options(wide)
    warps, stages = options.pop("num_warps"), options.pop("num_stages")
    return CompileCase(
        f"nearest, {wide} wide, {vectors}",
        _nearest,
        {"vectors": f"*{vectors}", "R": "i32"} | _CODEBOOK | {"codes": "*i32"},
        options | {"WIDE": wide, "K": 1024, "D": wide, "SPLIT": vectors == "fp32"},
        warps, stages, programs, wgmma=True,
    )  # fmt: skip


COMPILE_CASES = [
    _compile_case(64, "fp32", 3),
    _compile_case(64, "bf16", 3),
    _compile_case(128, "fp32", 1),
    _compile_case(256, "fp32", 1),
    _compile_case(256, "bf16", 1),
    CompileCase(
        "split_codebook",
        _split_codebook,
        {"codebook": "*fp32"} | _CODEBOOK,
        {"BLOCK": 16, "WIDE": 256, "WHOLE": 256, "K": 1024, "D": 256},
        min_programs=7,
    ),
    CompileCase(
        "sum_piece",
        _sum_piece,
        {"vectors": "*fp32", "order": "*i64", "bounds": "*i64", "pieces": "*i64", "owner": "*i64"}
        | {"partial": "*fp32"},
        {"PIECE": PIECE, "ROWS": 16, "CHUNK": 128, "K": 1024, "D": 256},
        min_programs=12,
    ),
    CompileCase(
        "sum_pieces",
        _sum_pieces,
        {"partial": "*fp32", "pieces": "*i64", "sums": "*fp32"},
        {"CHUNK": 128, "D": 256},
        num_warps=1,
        min_programs=32,
    ),
]
