"""What fills a slab, [rows, tokens] of the vocabulary, from hidden states and the LM head.

`gradient` has slabs of -C p, some tokens at a time; `one_pass` has slabs of exponentials, some rows at a time, before
their sums are known. Each slab goes into the library's matrix products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...launch import launch
from .logsumexp import LOG2_E, RowStatistics
from .pair_lists import DenseRows
from .tiles import Head, MatrixTiles, dot_tile, matrix_sizes, matrix_tiles

_TILES_AT_ONCE = 256


@triton.jit(do_not_specialize=["n", "first_tile", "stride_sums_row"])
def gradient_slab_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    row_ids_ptr,
    coefficients_ptr,
    targets_ptr,
    maxima_ptr,
    log_sums_ptr,
    slab_ptr,
    sums_ptr,
    n,
    first_token,
    first_tile,
    width,
    H,
    scale,
    stride_hidden_row,
    stride_weight_row,
    stride_slab_row,
    stride_sums_row,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    EVEN_H: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
    H, stride_hidden_row, stride_weight_row = H * MULTIPLE, stride_hidden_row * MULTIPLE, stride_weight_row * MULTIPLE
    place = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_row = place < n
    known_place = tl.minimum(place, n - 1)
    rows = tl.load(row_ids_ptr + known_place)
    columns = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    tokens = first_token + tl.minimum(columns, width - 1)
    offsets_h = tl.arange(0, BLOCK_H)

    hidden_ptrs = hidden_ptr + rows[:, None] * stride_hidden_row + offsets_h[None, :]
    weight_ptrs = weight_ptr + tokens.to(tl.int64)[None, :] * stride_weight_row + offsets_h[:, None]
    logits = dot_tile(hidden_ptrs, weight_ptrs, H, BLOCK_R, BLOCK_V, BLOCK_H, EVEN_H)
    if bias_ptr is not None:
        logits += tl.load(bias_ptr + tokens).to(tl.float32)[None, :]

    # scale is log2 e / temperature: p = 2^((logit - maximum) scale - log2 sum).
    maxima = tl.load(maxima_ptr + rows)
    log_sums = tl.load(log_sums_ptr + rows) * 1.4426950408889634
    coefficients = tl.load(coefficients_ptr + known_place)
    targets = tl.load(targets_ptr + known_place)
    slab = -coefficients[:, None] * tl.exp2((logits - maxima[:, None]) * scale - log_sums[:, None])
    is_other = (tokens[None, :] != targets[:, None]) & (columns < width)[None, :]
    slab = tl.where(is_other, slab, 0.0)
    slab_ptrs = slab_ptr + place.to(tl.int64)[:, None] * stride_slab_row + columns[None, :]
    tl.store(slab_ptrs, slab.to(slab_ptr.dtype.element_ty), mask=is_row[:, None] & (columns < width)[None, :])
    sums_ptrs = sums_ptr + place.to(tl.int64) * stride_sums_row + first_tile + tl.program_id(1)
    tl.store(sums_ptrs, tl.sum(slab, 1), mask=is_row)


@triton.jit(do_not_specialize=["n", "stride_tiles_row"])
def exponentials_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    row_ids_ptr,
    targets_ptr,
    target_logits_ptr,
    slab_ptr,
    sums_ptr,
    shifts_ptr,
    n,
    V,
    H,
    scale,
    stride_hidden_row,
    stride_weight_row,
    stride_slab_row,
    stride_tiles_row,
    BIAS: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    EVEN_H: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
    H, stride_hidden_row, stride_weight_row = H * MULTIPLE, stride_hidden_row * MULTIPLE, stride_weight_row * MULTIPLE
    place = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_row = place < n
    known_place = tl.minimum(place, n - 1)
    rows = tl.load(row_ids_ptr + known_place)
    columns = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    tokens = tl.minimum(columns, V - 1)
    offsets_h = tl.arange(0, BLOCK_H)

    hidden_ptrs = hidden_ptr + rows[:, None] * stride_hidden_row + offsets_h[None, :]
    weight_ptrs = weight_ptr + tokens.to(tl.int64)[None, :] * stride_weight_row + offsets_h[:, None]
    logits = dot_tile(hidden_ptrs, weight_ptrs, H, BLOCK_R, BLOCK_V, BLOCK_H, EVEN_H)
    if bias_ptr is not None:
        logits += tl.load(bias_ptr + tokens).to(tl.float32)[None, :]

    targets = tl.load(targets_ptr + known_place)
    powers = (logits - tl.load(target_logits_ptr + known_place)[:, None]) * scale + BIAS
    is_other = (tokens[None, :] != targets[:, None]) & (columns < V)[None, :]
    powers = tl.where(is_other, powers, float("-inf"))
    shifts = tl.maximum(tl.ceil(tl.max(powers, 1) - LIMIT), 0.0)
    slab = tl.exp2(powers - shifts[:, None])
    slab_ptrs = slab_ptr + place.to(tl.int64)[:, None] * stride_slab_row + columns[None, :]
    tl.store(slab_ptrs, slab.to(slab_ptr.dtype.element_ty), mask=is_row[:, None] & (columns < V)[None, :])
    tile = place.to(tl.int64) * stride_tiles_row + tl.program_id(1)
    tl.store(sums_ptr + tile, tl.sum(slab, 1), mask=is_row)
    tl.store(shifts_ptr + tile, shifts, mask=is_row)


@triton.jit(do_not_specialize=["num_tiles"])
def finish_rows_kernel(
    sums_ptr,
    shifts_ptr,
    coefficients_ptr,
    largest_shifts_ptr,
    factors_ptr,
    of_others_ptr,
    log_sums_ptr,
    num_tiles,
    BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Of a row: its shift, -C / sum, the sum of dz over the other tokens, and log(sum / e of the target)."""
    place = tl.program_id(0).to(tl.int64)
    largest = 0.0
    for start in range(0, num_tiles, BLOCK_T):
        tiles = start + tl.arange(0, BLOCK_T)
        shifts = tl.load(shifts_ptr + place * num_tiles + tiles, mask=tiles < num_tiles, other=0.0)
        largest = tl.maximum(largest, tl.max(shifts, 0))
    parts = tl.zeros([BLOCK_T], dtype=tl.float32)
    for start in range(0, num_tiles, BLOCK_T):
        tiles = start + tl.arange(0, BLOCK_T)
        inside = tiles < num_tiles
        shifts = tl.load(shifts_ptr + place * num_tiles + tiles, mask=inside, other=0.0)
        parts += tl.load(sums_ptr + place * num_tiles + tiles, mask=inside, other=0.0) * tl.exp2(shifts - largest)
    others = tl.sum(parts, 0)
    own = tl.exp2(BIAS - largest)
    total = own + others
    coefficient = tl.load(coefficients_ptr + place)
    # log(1 + ratio) to all its digits where the ratio is small, and without dividing by an own of 0 where it is large.
    ratio = others / tl.maximum(own, 1e-30)
    more = 1.0 + ratio
    small = tl.where(more == 1.0, ratio, tl.log(more) * ratio / tl.where(more == 1.0, 1.0, more - 1.0))
    log_sum = tl.where(others < own, small, (tl.log2(total) + (largest - BIAS)) * 0.6931471805599453)
    tl.store(largest_shifts_ptr + place, largest)
    tl.store(factors_ptr + place, -coefficient / total)
    tl.store(of_others_ptr + place, -coefficient * (others / total))
    tl.store(log_sums_ptr + place, log_sum)


@triton.jit(do_not_specialize=["n", "num_tiles"])
def level_tiles_kernel(
    slab_ptr,
    shifts_ptr,
    largest_shifts_ptr,
    n,
    V,
    num_tiles,
    stride_slab_row,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Tiles whose shift is not the row's are brought to it; others are left alone."""
    place = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_row = place < n
    shifts = tl.load(shifts_ptr + place.to(tl.int64) * num_tiles + tl.program_id(1), mask=is_row, other=0.0)
    down = tl.load(largest_shifts_ptr + place, mask=is_row, other=0.0) - shifts
    if tl.max(down, 0) > 0:
        columns = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
        ptrs = slab_ptr + place.to(tl.int64)[:, None] * stride_slab_row + columns[None, :]
        mask = is_row[:, None] & (columns < V)[None, :]
        slab = tl.load(ptrs, mask=mask, other=0.0).to(tl.float32) * tl.exp2(-down)[:, None]
        tl.store(ptrs, slab.to(slab_ptr.dtype.element_ty), mask=mask)


def gradient_slab(
    head: Head,
    dense: DenseRows,
    statistics: RowStatistics,
    first_token: int,
    slab: torch.Tensor,
    slab_sums: torch.Tensor,
    tiles: MatrixTiles,
) -> None:
    """Write -C p of tokens first_token .. of dense row i to slab[i], and 0 at its target; slab [n, width].

    The sum of each tile, as it was before rounding, goes to its column of slab_sums, fp32 [n, tiles of V].
    """
    hidden, weight, bias, temperature = head
    n, width = slab.shape
    launch(
        gradient_slab_kernel,
        (triton.cdiv(n, tiles.rows), triton.cdiv(width, tiles.tokens)),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        hidden_ptr=hidden,
        weight_ptr=weight,
        bias_ptr=bias,
        row_ids_ptr=dense.ids,
        coefficients_ptr=dense.coefficients,
        targets_ptr=dense.targets,
        maxima_ptr=statistics.maxima,
        log_sums_ptr=statistics.log_sums,
        slab_ptr=slab,
        sums_ptr=slab_sums,
        n=n,
        first_token=first_token,
        first_tile=first_token // tiles.tokens,
        width=width,
        scale=LOG2_E / float(temperature),
        stride_slab_row=slab.stride(0),
        stride_sums_row=slab_sums.stride(0),
        BLOCK_V=tiles.tokens,
        **matrix_sizes(hidden, weight, tiles),
    )


def exponentials(
    head: Head, block: DenseRows, target_logits: torch.Tensor, slab: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Write e of n rows to slab [n, V]; fp32 [n] each: -C / sum, the sum of dz over other tokens, log(sum / own)."""
    hidden, weight, bias, temperature = head
    n, V = slab.shape
    tiles = matrix_tiles(n, hidden, weight)
    num_tiles = triton.cdiv(V, tiles.tokens)
    # fp16 keeps numbers from 2^-14 to 2^15 to all their digits: the target's e is 2^14 there.
    bias_of_powers, limit = (14.0, 15.0) if weight.dtype == torch.float16 else (0.0, 100.0)

    def new(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.float32, device=hidden.device)

    sums, shifts = new(n, num_tiles), new(n, num_tiles)
    launch(
        exponentials_kernel,
        (triton.cdiv(n, tiles.rows), num_tiles),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        hidden_ptr=hidden,
        weight_ptr=weight,
        bias_ptr=bias,
        row_ids_ptr=block.ids,
        targets_ptr=block.targets,
        target_logits_ptr=target_logits,
        slab_ptr=slab,
        sums_ptr=sums,
        shifts_ptr=shifts,
        n=n,
        V=V,
        scale=LOG2_E / float(temperature),
        stride_slab_row=slab.stride(0),
        stride_tiles_row=num_tiles,
        BIAS=bias_of_powers,
        LIMIT=limit,
        BLOCK_V=tiles.tokens,
        **matrix_sizes(hidden, weight, tiles),
    )
    largest, factors, of_others, log_sums = (new(n) for _ in range(4))
    launch(
        finish_rows_kernel,
        (n,),
        num_warps=1,
        sums_ptr=sums,
        shifts_ptr=shifts,
        coefficients_ptr=block.coefficients,
        largest_shifts_ptr=largest,
        factors_ptr=factors,
        of_others_ptr=of_others,
        log_sums_ptr=log_sums,
        num_tiles=num_tiles,
        BIAS=bias_of_powers,
        BLOCK_T=_TILES_AT_ONCE,
    )
    launch(
        level_tiles_kernel,
        (triton.cdiv(n, tiles.rows), num_tiles),
        num_warps=tiles.num_warps,
        slab_ptr=slab,
        shifts_ptr=shifts,
        largest_shifts_ptr=largest,
        n=n,
        V=V,
        num_tiles=num_tiles,
        stride_slab_row=slab.stride(0),
        BLOCK_R=tiles.rows,
        BLOCK_V=tiles.tokens,
    )
    return factors, of_others, log_sums
