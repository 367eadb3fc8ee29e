"""The LM head as a stream: logsumexp over the vocabulary and single logits, without a [rows, vocabulary] tensor.

    z_rv = (hidden_r . weight_v + bias_v) / temperature        logsumexp_r = log sum_v exp z_rv

hidden [R, H], weight [V, H] and bias [V] in fp32, bf16 or fp16; products are accumulated in fp32 (never in tf32).

One persistent kernel walks over pieces of work, each a block of rows times a span of the vocabulary, and within a span
over tiles [rows, tokens] that live in registers. A span leaves a maximum and a sum of powers of two for each of its
rows; a second kernel adds the spans up in their order. So there are no atomics and no locks, and the same input gives
the same bits. Rows are named by a list (`row_ids`) whose length is read on the device: rows that nobody wants cost
nothing, and the host never waits. Used by `log_prob` and `beam_step`; knows nothing of losses or beams.

What one call of `vocabulary_statistics` takes, n = wanted rows: 2 n V H FLOPs; (n + V) H elements read at least once,
the weight once for every wave of row blocks, from L2; spans x R x 8 bytes (12 with entropy) of partial results, at most
16 MiB. n = 4,096, V = 151,936, H = 896 in bf16: 1.115 TFLOP, 1.41 ms at 790 TFLOP/s; 280 MB, 65 us at 4.3 TB/s.
n = 16: 4.4 GFLOP and 272 MB: bound by memory, 63 us. Times on a GPU: not measured.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...launch import MOST_REGISTERS, launch, multiprocessors
from .tiles import dot_tile, matrix_sizes, matrix_tiles, programs_at_once, rows_in_place

LOG2_E = 1.4426950408889634
_MAX_PARTIAL_BYTES = 2**24
_ROWS_AT_ONCE = 1024  # of the one program that lists the wanted rows
_ROWS_TO_COMBINE = 16
_SPANS_TO_COMBINE = 64  # at once: one after another, their loads would be waited for one after another


class RowStatistics(NamedTuple):
    """Rows that were not wanted are not written. Maximum and sum stay apart: `log_softmax` says why."""

    maxima: torch.Tensor  # fp32 [R], the largest logit before the temperature
    log_sums: torch.Tensor  # fp32 [R], log sum_v exp((z_v - maximum) / temperature), at least 0
    entropy: torch.Tensor | None  # fp32 [R], in nats


@triton.jit(do_not_specialize=["R"])
def live_rows_kernel(is_live_ptr, row_ids_ptr, num_rows_ptr, R, BLOCK_R: tl.constexpr):
    count = 0
    for start in range(0, R, BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        live = tl.load(is_live_ptr + rows, mask=rows < R, other=0).to(tl.int32)
        place = count + tl.cumsum(live, 0) - 1
        tl.store(row_ids_ptr + place, rows, mask=live != 0)
        count += tl.sum(live, 0)
    tl.store(num_rows_ptr, count)


@triton.jit(do_not_specialize=["R", "tiles_per_span"])
def vocabulary_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    row_ids_ptr,
    num_rows_ptr,
    maxima_ptr,
    sums_ptr,
    moments_ptr,
    R,
    V,
    H,
    tiles_per_span,
    scale,
    stride_hidden_row,
    stride_weight_row,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    EVEN_H: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    H, stride_hidden_row, stride_weight_row = H * MULTIPLE, stride_hidden_row * MULTIPLE, stride_weight_row * MULTIPLE
    scale = tl.cast(scale, tl.float32)
    # Row blocks run fastest: programs that run side by side share the same span of the weight in L2.
    num_rows = tl.load(num_rows_ptr)
    num_blocks = tl.cdiv(num_rows, BLOCK_R)
    num_spans = tl.cdiv(V, BLOCK_V * tiles_per_span)
    offsets_h = tl.arange(0, BLOCK_H)

    for piece in range(tl.program_id(0), num_blocks * num_spans, tl.num_programs(0)):
        span = piece // num_blocks
        place = (piece % num_blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
        is_row = place < num_rows
        rows = tl.load(row_ids_ptr + tl.minimum(place, num_rows - 1)).to(tl.int64)
        hidden_ptrs = hidden_ptr + rows[:, None] * stride_hidden_row + offsets_h[None, :]

        # Running statistics: sum_v 2^((logit_v - maximum) scale), with scale = log2 e / temperature. The difference is
        # taken first, so that it is exactly 0 for the maximum: a fused logit * scale - maximum * scale is not.
        maxima = tl.full([BLOCK_R], float("-inf"), dtype=tl.float32)
        sums = tl.zeros([BLOCK_R], dtype=tl.float32)
        moments = tl.zeros([BLOCK_R], dtype=tl.float32)
        for tile in range(0, tiles_per_span):
            tokens = (span * tiles_per_span + tile) * BLOCK_V + tl.arange(0, BLOCK_V)
            # Beyond the end the last token is computed again and left out below: loads need no mask.
            known = tl.minimum(tokens, V - 1)
            weight_ptrs = weight_ptr + known.to(tl.int64)[None, :] * stride_weight_row + offsets_h[:, None]
            logits = dot_tile(hidden_ptrs, weight_ptrs, H, BLOCK_R, BLOCK_V, BLOCK_H, EVEN_H)
            if bias_ptr is not None:
                logits += tl.load(bias_ptr + known).to(tl.float32)[None, :]
            logits = tl.where((tokens < V)[None, :], logits, float("-inf"))
            larger = tl.maximum(maxima, tl.max(logits, 1))
            origin = tl.where(larger == float("-inf"), 0.0, larger)
            shift = (maxima - origin) * scale
            powers = (logits - origin[:, None]) * scale
            terms = tl.exp2(powers)
            if moments_ptr is not None:
                moments = tl.exp2(shift) * (moments + tl.where(sums > 0, sums * shift, 0.0))
                moments += tl.sum(tl.where(terms > 0, terms * powers, 0.0), 1)
            sums = sums * tl.exp2(shift) + tl.sum(terms, 1)
            maxima = larger

        partial = span.to(tl.int64) * R + rows
        tl.store(maxima_ptr + partial, maxima, mask=is_row)
        tl.store(sums_ptr + partial, sums, mask=is_row)
        if moments_ptr is not None:
            tl.store(moments_ptr + partial, moments, mask=is_row)


@triton.jit(do_not_specialize=["R", "num_spans"])
def combine_spans_kernel(
    maxima_ptr,
    sums_ptr,
    moments_ptr,
    row_ids_ptr,
    num_rows_ptr,
    row_maxima_ptr,
    log_sums_ptr,
    entropy_ptr,
    R,
    num_spans,
    scale,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
    num_rows = tl.load(num_rows_ptr)
    place = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_row = place < num_rows
    rows = tl.load(row_ids_ptr + place, mask=is_row, other=0).to(tl.int64)

    maxima = tl.full([BLOCK_R], float("-inf"), dtype=tl.float32)
    sums = tl.zeros([BLOCK_R], dtype=tl.float32)
    moments = tl.zeros([BLOCK_R], dtype=tl.float32)
    for first in range(0, num_spans, BLOCK_S):
        spans = first + tl.arange(0, BLOCK_S)
        inside = (spans < num_spans)[:, None] & is_row[None, :]
        partial = spans.to(tl.int64)[:, None] * R + rows[None, :]
        maximum = tl.load(maxima_ptr + partial, mask=inside, other=float("-inf"))
        larger = tl.maximum(maxima, tl.max(maximum, 0))
        origin = tl.where(larger == float("-inf"), 0.0, larger)
        old, new = (maxima - origin) * scale, (maximum - origin[None, :]) * scale
        partial_sums = tl.load(sums_ptr + partial, mask=inside, other=0.0)
        if moments_ptr is not None:
            partial_moments = tl.load(moments_ptr + partial, mask=inside, other=0.0)
            partial_moments += tl.where(partial_sums > 0, partial_sums * new, 0.0)
            moments = tl.exp2(old) * (moments + tl.where(sums > 0, sums * old, 0.0))
            moments += tl.sum(tl.exp2(new) * partial_moments, 0)
        sums = sums * tl.exp2(old) + tl.sum(partial_sums * tl.exp2(new), 0)
        maxima = larger

    log_sums = tl.log2(sums)
    tl.store(row_maxima_ptr + rows, maxima, mask=is_row)
    tl.store(log_sums_ptr + rows, log_sums * 0.6931471805599453, mask=is_row)
    if moments_ptr is not None:
        # H = log sum_v exp(d_v) - sum_v p_v d_v, d_v = z_v - maximum
        tl.store(entropy_ptr + rows, (log_sums - moments / sums) * 0.6931471805599453, mask=is_row)


@triton.jit
def token_logits_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    row_ids_ptr,
    num_rows_ptr,
    tokens_ptr,
    logits_ptr,
    U,
    H,
    stride_hidden_row,
    stride_weight_row,
    stride_logits_row,
    BY_PLACE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    EVEN_H: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    H, stride_hidden_row, stride_weight_row = H * MULTIPLE, stride_hidden_row * MULTIPLE, stride_weight_row * MULTIPLE
    num_rows = tl.load(num_rows_ptr)
    first = tl.program_id(0) * BLOCK_R
    if first < num_rows:
        place = first + tl.arange(0, BLOCK_R)
        rows = tl.load(row_ids_ptr + tl.minimum(place, num_rows - 1)).to(tl.int64)
        columns = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
        tokens = tl.load(tokens_ptr + tl.minimum(columns, U - 1)).to(tl.int64)
        offsets_h = tl.arange(0, BLOCK_H)

        hidden_ptrs = hidden_ptr + rows[:, None] * stride_hidden_row + offsets_h[None, :]
        weight_ptrs = weight_ptr + tokens[None, :] * stride_weight_row + offsets_h[:, None]
        logits = dot_tile(hidden_ptrs, weight_ptrs, H, BLOCK_R, BLOCK_V, BLOCK_H, EVEN_H)
        if bias_ptr is not None:
            logits += tl.load(bias_ptr + tokens).to(tl.float32)[None, :]

        target = place.to(tl.int64) if BY_PLACE else rows
        is_stored = (place < num_rows)[:, None] & (columns < U)[None, :]
        tl.store(logits_ptr + target[:, None] * stride_logits_row + columns[None, :], logits, mask=is_stored)


def live_rows(is_live: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows where `is_live` (bool [R]) is true, ascending: int32 [R], the first n count; and n, int32 [1]."""
    row_ids = torch.empty(len(is_live), dtype=torch.int32, device=is_live.device)
    num_rows = torch.empty(1, dtype=torch.int32, device=is_live.device)
    launch(
        live_rows_kernel,
        (1,),
        is_live_ptr=is_live,
        row_ids_ptr=row_ids,
        num_rows_ptr=num_rows,
        R=len(is_live),
        BLOCK_R=_ROWS_AT_ONCE,
    )
    return row_ids, num_rows


def vocabulary_statistics(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float,
    row_ids: torch.Tensor,
    num_rows: torch.Tensor,
    *,
    with_entropy: bool = False,
) -> RowStatistics:
    """The softmax's maximum and sum (and entropy) of the logits of the wanted rows, divided by the temperature.

    hidden [R, H], weight [V, H], bias [V] of one dtype; unchecked. row_ids int32 [R]: the wanted rows, of which the
    first num_rows[0] count (int32 [1], read on the device only).
    """
    hidden, weight = rows_in_place(hidden), rows_in_place(weight)
    R, V = len(hidden), len(weight)
    tiles = matrix_tiles(R, hidden, weight)
    num_tiles = triton.cdiv(V, tiles.tokens)
    most_spans = max(1, _MAX_PARTIAL_BYTES // (12 * max(1, R)))
    programs = multiprocessors(hidden.device) * programs_at_once(tiles, hidden)
    if tiles.rows >= R:  # one program combines them all: no more of them than are in flight
        most_spans = min(most_spans, programs)
    tiles_per_span = triton.cdiv(num_tiles, most_spans)
    num_spans = triton.cdiv(num_tiles, tiles_per_span)

    def new(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.float32, device=hidden.device)

    scale = LOG2_E / float(temperature)
    maxima, sums = new(num_spans, R), new(num_spans, R)
    moments = new(num_spans, R) if with_entropy else None
    launch(
        vocabulary_kernel,
        (min(programs, triton.cdiv(R, tiles.rows) * num_spans),),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        hidden_ptr=hidden,
        weight_ptr=weight,
        bias_ptr=bias,
        row_ids_ptr=row_ids,
        num_rows_ptr=num_rows,
        maxima_ptr=maxima,
        sums_ptr=sums,
        moments_ptr=moments,
        R=R,
        V=V,
        tiles_per_span=tiles_per_span,
        scale=scale,
        BLOCK_V=tiles.tokens,
        **matrix_sizes(hidden, weight, tiles),
    )
    statistics = RowStatistics(new(R), new(R), new(R) if with_entropy else None)
    launch(
        combine_spans_kernel,
        (triton.cdiv(R, _ROWS_TO_COMBINE),),
        num_warps=4,
        maxima_ptr=maxima,
        sums_ptr=sums,
        moments_ptr=moments,
        row_ids_ptr=row_ids,
        num_rows_ptr=num_rows,
        row_maxima_ptr=statistics.maxima,
        log_sums_ptr=statistics.log_sums,
        entropy_ptr=statistics.entropy,
        R=R,
        num_spans=num_spans,
        scale=scale,
        BLOCK_R=_ROWS_TO_COMBINE,
        BLOCK_S=_SPANS_TO_COMBINE,
    )
    return statistics


def token_logits(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tokens: torch.Tensor,
    row_ids: torch.Tensor,
    num_rows: torch.Tensor,
    *,
    by_place: bool = False,
) -> torch.Tensor:
    """Logits of the wanted rows at some tokens, before any temperature: fp32 [R, U].

    tokens int32 [U]; the other arguments as in `vocabulary_statistics`. Row r of the result is that of hidden row r.
    With by_place, row i is that of hidden row row_ids[i], a row may be named several times, and the result is
    [len(row_ids), U].
    """
    hidden, weight = rows_in_place(hidden), rows_in_place(weight)
    U, places = len(tokens), len(row_ids)
    tiles = matrix_tiles(places, hidden, weight)
    block_v = min(tiles.tokens, 128)  # a few thousand tokens at most: more and smaller tiles fill the multiprocessors
    logits = torch.empty(places if by_place else len(hidden), U, dtype=torch.float32, device=hidden.device)
    launch(
        token_logits_kernel,
        (triton.cdiv(places, tiles.rows), triton.cdiv(U, block_v)),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        max_registers=MOST_REGISTERS if hidden.dtype == torch.float32 else None,
        hidden_ptr=hidden,
        weight_ptr=weight,
        bias_ptr=bias,
        row_ids_ptr=row_ids,
        num_rows_ptr=num_rows,
        tokens_ptr=tokens,
        logits_ptr=logits,
        U=U,
        stride_logits_row=U,
        BY_PLACE=by_place,
        BLOCK_V=block_v,
        **matrix_sizes(hidden, weight, tiles),
    )
    return logits
