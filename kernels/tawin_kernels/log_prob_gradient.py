"""The backward pass of `log_prob`: from d loss / d log p to the gradients of hidden states and LM head.

    dz_rv = sum_i c_i onehot(t_i)_v - (sum_i c_i) p_rv       the pairs i of row r, c_i = d loss / d log p_i
    dhidden = dz weight / temperature,  dweight = dz^T hidden / temperature,  dbias = sum_r dz_r / temperature

Pairs without a coefficient are dropped first (this waits for the device), and rows without pairs with them. The sparse
part, sum_i c_i weight_{t_i}, is a segmented sum in fp32. Rows whose coefficients cancel, as those of a state that all
completions of a group share do where each advantage counts once, are done with that. For the others -(sum_i c_i) p is
made a slab of the vocabulary at a time, at most 32 MiB in the operands' dtype, so that it is still in L2 when the
library's matrix product takes it to dhidden and dweight.

Why slabs and not a kernel that recomputes tiles all the way: dhidden of a row block, [128, H] in fp32, does not fit
into the registers beside a tile, so such a kernel needs atomics, or computes the logits H / 256 times. A slab costs 2
elements of traffic a logit, mostly in L2: 32 MiB at 5 TB/s are 7 us each way, against 2 x 16.8e6 x 896 FLOPs = 38 us
at 790 TFLOP/s for each of the products that make it and use it; adding its product to dhidden, 4,096 x 896 sums read
twice and written twice, 12 us. Extra memory: the slab, sums and products of at most 4,096 rows in fp32 (2 x 14.7 MB at
H = 896), 60 MiB in all; a trained head keeps the sums of all rows and those of its own slab.

The library's products in fp32 follow PyTorch's setting (`torch.set_float32_matmul_precision`): full fp32 by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .arguments import IGNORED_TOKEN
from .gradient_sums import group_by, matrix_product, segment_sum, unit_of
from .launch import launch
from .linear_logsumexp import LOG2_E, RowStatistics, dot_tile, matrix_tiles

_MAX_SLAB_BYTES = 2**25
_MAX_SLAB_ROWS = 4096  # with more of them a slab's columns would be few, and its sums into dhidden bound by memory
# A row whose coefficients add up to less than this part of their absolute sum has rounding dust and no dense part.
_CANCELLED = 2.0**-22


@triton.jit
def gradient_slab_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    row_ids_ptr,
    coefficients_ptr,
    maxima_ptr,
    log_sums_ptr,
    slab_ptr,
    n,
    first_token,
    width,
    H,
    scale,
    stride_hidden_row,
    stride_weight_row,
    stride_slab_row,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    EVEN_H: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
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
    slab = -coefficients[:, None] * tl.exp2((logits - maxima[:, None]) * scale - log_sums[:, None])
    slab_ptrs = slab_ptr + place.to(tl.int64)[:, None] * stride_slab_row + columns[None, :]
    tl.store(slab_ptrs, slab.to(slab_ptr.dtype.element_ty), mask=is_row[:, None] & (columns < width)[None, :])


class Head(NamedTuple):
    """The LM head and what goes into it."""

    hidden: torch.Tensor  # [R, H], the elements of a row side by side
    weight: torch.Tensor  # [V, H], likewise
    bias: torch.Tensor | None  # [V]
    temperature: float


def log_prob_gradient(
    head: Head,
    token_ids: torch.Tensor,
    rows: torch.Tensor | None,
    statistics: RowStatistics,
    gradient: torch.Tensor,
    wanted: tuple[bool, bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Those of hidden, weight and bias, as far as wanted. gradient fp32 [N] = dloss / dlog p."""
    hidden, weight, _bias, temperature = head
    pairs = ((token_ids != IGNORED_TOKEN) & (gradient != 0)).nonzero().squeeze(1)
    tokens = token_ids[pairs]  # [P]
    coefficients = gradient[pairs] / temperature  # [P]
    pair_rows = pairs if rows is None else rows[pairs]
    by_row = group_by(pair_rows, sorted_and_distinct=rows is None)

    hidden_gradient = torch.zeros_like(hidden) if wanted[0] else None
    head_gradient = _HeadGradient(
        torch.zeros_like(weight) if wanted[1] else None,
        weight.new_zeros(len(weight), dtype=torch.float32) if wanted[2] else None,
    )
    # With a frozen head, block by block: fp32 sums of all rows are never held at once. A trained head takes all rows
    # of a slab before the next slab, so that its gradient needs no second [V, H].
    D = len(by_row.keys)
    at_once = max(1, D) if wanted[1] else _MAX_SLAB_ROWS
    for first in range(0, D, at_once):
        block = by_row.part(first, min(first + at_once, D))
        sums, totals = segment_sum(weight, tokens, coefficients, block)  # fp32 [D, H], [D, 2]
        dense = (~(totals[:, 0].abs() <= _CANCELLED * totals[:, 1])).nonzero().squeeze(1)
        if len(dense) > 0:
            unit = unit_of(totals[dense, 0])
            sums /= unit
            dense_sums = sums if len(dense) == len(sums) else torch.zeros_like(sums[: len(dense)])
            _add_dense_part(
                head, block.keys[dense], totals[dense, 0] / unit, unit, statistics, dense_sums, head_gradient
            )
            if dense_sums is not sums:
                sums.index_add_(0, dense, dense_sums)  # each row once
            sums *= unit
        if hidden_gradient is not None:
            hidden_gradient.index_copy_(0, block.keys, sums.to(hidden.dtype))

    weight_gradient, bias_gradient = head_gradient
    if weight_gradient is not None or bias_gradient is not None:
        by_token = group_by(tokens)
        sums, totals = segment_sum(hidden, pair_rows, coefficients, by_token)
        at = by_token.keys
        if weight_gradient is not None:
            weight_gradient[at] = (weight_gradient[at].float() + sums).to(weight.dtype)
        if bias_gradient is not None:
            bias_gradient[at] += totals[:, 0]
    return hidden_gradient, weight_gradient, None if bias_gradient is None else bias_gradient.to(weight.dtype)


class _HeadGradient(NamedTuple):
    weight: torch.Tensor | None  # [V, H] in the weight's dtype
    bias: torch.Tensor | None  # fp32 [V]


def _add_dense_part(
    head: Head,
    row_ids: torch.Tensor,
    coefficients: torch.Tensor,
    unit: torch.Tensor,
    statistics: RowStatistics,
    hidden_sums: torch.Tensor,
    head_gradient: _HeadGradient,
) -> None:
    """Add what dz = -c p gives for the rows row_ids [n]: to hidden_sums fp32 [n, H] and to the head's gradient.

    coefficients fp32 [n] and hidden_sums are in units of `unit`, the head's gradient is not.
    """
    weight = head.weight
    n = len(row_ids)
    blocks = [slice(first, min(first + _MAX_SLAB_ROWS, n)) for first in range(0, n, _MAX_SLAB_ROWS)]
    trained = head.hidden[row_ids] if head_gradient.weight is not None else None  # [n, H]
    for first_token, room in slabs(weight, n):
        tokens = slice(first_token, first_token + room.shape[1])
        of_tokens: torch.Tensor | None = None  # fp32 [width, H]
        for block in blocks:
            slab = room[: block.stop - block.start]
            gradient_slab(head, row_ids[block], coefficients[block], statistics, first_token, slab)
            matrix_product(slab, weight[tokens], hidden_sums[block])
            if trained is not None:
                of_tokens = matrix_product(slab.T, trained[block], of_tokens)
            if head_gradient.bias is not None:
                head_gradient.bias[tokens] += slab.sum(0, dtype=torch.float32) * unit
        if head_gradient.weight is not None and of_tokens is not None:
            head_gradient.weight[tokens] = (of_tokens * unit).to(weight.dtype)


def slabs(weight: torch.Tensor, n: int) -> Iterator[tuple[int, torch.Tensor]]:
    """The vocabulary in pieces: the first token of each, and room for its logits, [at most n rows, width], used again.

    A row of it begins at a multiple of 16 elements: without that, a tile is stored an element at a time.
    """
    V = len(weight)
    rows = min(n, _MAX_SLAB_ROWS)
    columns = _MAX_SLAB_BYTES // (weight.element_size() * rows)
    columns = min(V, max(256, columns // 256 * 256))
    room = torch.empty(rows, -(-columns // 16) * 16, dtype=weight.dtype, device=weight.device)
    for first_token in range(0, V, columns):
        yield first_token, room[:, : min(columns, V - first_token)]


def gradient_slab(
    head: Head,
    row_ids: torch.Tensor,
    coefficients: torch.Tensor,
    statistics: RowStatistics,
    first_token: int,
    slab: torch.Tensor,
) -> None:
    """Write -c_i p of tokens first_token .. of hidden row row_ids[i] to slab[i]; slab [n, width], row_ids int64 [n]."""
    hidden, weight, bias, temperature = head
    n, width = slab.shape
    H = hidden.shape[1]
    tiles = matrix_tiles(n, hidden, weight)
    launch(
        gradient_slab_kernel,
        (triton.cdiv(n, tiles.rows), triton.cdiv(width, tiles.tokens)),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        hidden_ptr=hidden,
        weight_ptr=weight,
        bias_ptr=bias,
        row_ids_ptr=row_ids,
        coefficients_ptr=coefficients,
        maxima_ptr=statistics.maxima,
        log_sums_ptr=statistics.log_sums,
        slab_ptr=slab,
        n=n,
        first_token=first_token,
        width=width,
        H=H,
        scale=LOG2_E / float(temperature),
        stride_hidden_row=hidden.stride(0),
        stride_weight_row=weight.stride(0),
        stride_slab_row=slab.stride(0),
        BLOCK_R=tiles.rows,
        BLOCK_V=tiles.tokens,
        BLOCK_H=tiles.hidden,
        EVEN_H=H % tiles.hidden == 0,
    )
