"""The backward pass of `log_prob`: from d loss / d log p to the gradients of hidden states and LM head.

    dz_rv = sum_i c_i onehot(t_i)_v - C_r p_rv      the pairs i of row r, c_i = d loss / d log p_i, C_r = sum_i c_i
    dhidden = dz weight / temperature,  dweight = dz^T hidden / temperature,  dbias = sum_r dz_r / temperature

Rows and pairs are listed on the device (`pair_lists`); the pass waits once, to read how many there are. Pairs without a
coefficient are in no list. Two parts make the gradient:

* dense: -C_r p, made a slab of the vocabulary at a time, at most 32 MiB in the operands' dtype, so that it is still in
  L2 when the library's matrix product takes it to dhidden and dweight. Rows whose coefficients cancel, as those of a
  state that all completions of a group share do where each advantage counts once, have none.
* sparse: d_i = (dz at the pair's token), a segmented sum of weight and hidden rows in fp32.

A slab holds 0 at the tokens of a row's pairs, so that c_i and -C_r p_r,t meet in fp32, before anything is rounded to
16 bits: with a confident token the two are nearly the same. At the row's likeliest token even fp32 would lose what is
left of c (1 - p). There d is taken as what makes dz_r add up to 0, from the slab's own sums of the other tokens.

Why slabs and not a kernel that recomputes tiles all the way: dhidden of a row block, [128, H] in fp32, does not fit
into the registers beside a tile, so such a kernel needs atomics, or computes the logits H / 256 times. A slab costs 2
elements of traffic a logit, mostly in L2: 32 MiB at 5 TB/s are 7 us each way, against 2 x 16.8e6 x 896 FLOPs = 38 us
at 790 TFLOP/s for each of the products that make it and use it; adding its product to dhidden, 4,096 x 896 sums read
and written once, 6 us. Extra memory: the slab; in fp32 the sums of at most 4,096 rows, [4,096, H], and one number a row
and tile of the vocabulary, 10 MB. A trained head keeps the sums of all rows, those of its own slab, and those of the
tokens that occur.

The library's products in fp32 follow PyTorch's setting (`torch.set_float32_matmul_precision`): full fp32 by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...launch import launch
from .gradient_sums import matrix_product, segment_sum, unit_of
from .logsumexp import RowStatistics
from .pair_lists import DenseRows, PairLists, Pairs, clear_pairs, list_pairs
from .segments import Segments
from .slab_kernels import gradient_slab
from .tiles import Head, matrix_tiles

_MAX_SLAB_BYTES = 2**25
_MAX_SLAB_ROWS = 4096  # with more of them a slab's columns would be few, and its sums into dhidden bound by memory
_MEMBERS_AT_ONCE = 32  # pairs of a row
_TILES_AT_ONCE = 256
_COLUMNS_AT_ONCE = 256


@triton.jit(do_not_specialize=["num_tiles"])
def pair_gradients_kernel(
    segments_ptr,
    order_ptr,
    offsets_ptr,
    tokens_ptr,
    log_probs_ptr,
    coefficients_ptr,
    totals_ptr,
    rests_ptr,
    targets_ptr,
    sums_ptr,
    unit_ptr,
    gradients_ptr,
    num_tiles,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """d_i of the pairs of dense row i, which is segment segments[i]. Pairs with the same token stand side by side."""
    place = tl.program_id(0).to(tl.int64)
    segment = tl.load(segments_ptr + place)
    others = tl.zeros([BLOCK_T], dtype=tl.float32)
    for start in range(0, num_tiles, BLOCK_T):
        tiles = start + tl.arange(0, BLOCK_T)
        others += tl.load(sums_ptr + place * num_tiles + tiles, mask=tiles < num_tiles, other=0.0)
    of_others = tl.sum(others, 0) * tl.load(unit_ptr)  # sum of -C p over all tokens but the target
    total = tl.load(totals_ptr + segment)
    target = tl.load(targets_ptr + segment)

    balance = -tl.load(rests_ptr + segment) - of_others
    first, end = tl.load(offsets_ptr + segment), tl.load(offsets_ptr + segment + 1)
    for start in range(first, end, BLOCK_M):
        places = start + tl.arange(0, BLOCK_M)
        is_member = places < end
        members = tl.load(order_ptr + places, mask=is_member, other=0)
        tokens = tl.load(tokens_ptr + members, mask=is_member, other=-1)
        before = tl.load(order_ptr + places - 1, mask=is_member & (places > first), other=0)
        token_before = tl.load(tokens_ptr + before, mask=is_member & (places > first), other=-1)
        is_first = is_member & (tokens != token_before)
        log_probs = tl.load(log_probs_ptr + members, mask=is_member, other=0.0)
        own = tl.load(coefficients_ptr + members, mask=is_member, other=0.0)
        # The first of several pairs with one token takes what all of them share.
        at_target = tl.where(is_first, balance, 0.0)
        elsewhere = own - tl.where(is_first, total * tl.exp(log_probs), 0.0)
        tl.store(gradients_ptr + members, tl.where(tokens == target, at_target, elsewhere), mask=is_member)


@triton.jit(do_not_specialize=["first", "count"])
def keep_rows_kernel(keys_ptr, rows_ptr, kept_ptr, first, count, H, BLOCK_H: tl.constexpr):
    """kept[i] = rows[keys[i] - first] where there is such a row."""
    place = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    row = tl.load(keys_ptr + place) - first
    if (row >= 0) & (row < count):
        values = tl.load(rows_ptr + row * H + columns, mask=columns < H)
        tl.store(kept_ptr + place * H + columns, values, mask=columns < H)


def log_prob_gradient(
    head: Head,
    pairs: Pairs,
    statistics: RowStatistics,
    wanted: tuple[bool, bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Those of hidden, weight and bias, as far as wanted. The pairs' coefficients: dloss / dlog p / temperature."""
    lists = list_pairs(pairs, len(head.hidden), len(head.weight), by_token=wanted[1] or wanted[2])
    return gradient_of_lists(head, pairs, lists, statistics, wanted)


def gradient_of_lists(
    head: Head,
    pairs: Pairs,
    lists: PairLists,
    statistics: RowStatistics,
    wanted: tuple[bool, bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The same; nothing waits any more."""
    hidden, weight = head.hidden, head.weight
    n = len(lists.dense)
    unit = unit_of(lists.rows.totals)
    made = _Gradients(
        torch.zeros_like(hidden) if wanted[0] else None,
        (torch.empty_like(weight) if n > 0 else torch.zeros_like(weight)) if wanted[1] else None,
        torch.zeros(len(weight), dtype=torch.float32, device=weight.device) if wanted[2] else None,
        None,
    )
    if made.weight is not None and lists.by_token is not None and n > 0:
        of_pairs = torch.empty(len(lists.by_token.keys), weight.shape[1], dtype=torch.float32, device=weight.device)
        made = made._replace(of_pairs=of_pairs)
    if made.hidden is not None and n < len(lists.by_row.keys):
        skip = lists.rows.is_dense
        segment_sum(weight, pairs.tokens, pairs.coefficients, lists.by_row, into=made.hidden, skip=skip)

    gradients = pairs.coefficients.clone()  # d: that of the pairs of rows without a dense part is c
    dense = DenseRows(
        lists.dense,
        lists.by_row.keys[lists.dense],
        lists.rows.totals[lists.dense] / unit,
        lists.rows.targets[lists.dense],
    )
    # With a frozen head, block by block: fp32 sums of all rows are never held at once. A trained head takes all rows
    # of a slab before the next slab, so that its gradient needs no second [V, H].
    at_once = max(1, n) if wanted[1] else _MAX_SLAB_ROWS
    for first in range(0, n, at_once):
        block = dense.part(first, min(first + at_once, n))
        of_hidden, slab_sums = _dense_part(head, pairs, lists, block, statistics, unit, made)
        pair_gradients(pairs, lists, block, slab_sums, unit, gradients)
        if made.hidden is not None:
            segment_sum(
                weight,
                pairs.tokens,
                gradients,
                lists.by_row,
                into=made.hidden,
                base=of_hidden,
                unit=unit,
                chosen=block.segments,
            )
    if lists.by_token is not None:
        _add_pairs_to_head(head, pairs, lists.by_token, gradients, unit, made)
    return made.hidden, made.weight, None if made.bias is None else made.bias.to(weight.dtype)


class _Gradients(NamedTuple):
    """What is wanted, and None for what is not."""

    hidden: torch.Tensor | None  # [R, H] in the dtype of hidden
    weight: torch.Tensor | None  # [V, H] in the dtype of the weight
    bias: torch.Tensor | None  # fp32 [V]
    of_pairs: torch.Tensor | None  # fp32 [tokens that occur, H] in units: their rows of the weight before rounding


def _dense_part(
    head: Head,
    pairs: Pairs,
    lists: PairLists,
    dense: DenseRows,
    statistics: RowStatistics,
    unit: torch.Tensor,
    made: _Gradients,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """What the slabs of n rows give: to dhidden fp32 [n, H] in units; and the slabs' sums fp32 [n, tiles].

    Their part of the head's gradient is written to `made`.
    """
    hidden, weight = head.hidden, head.weight
    n, H = len(dense.ids), hidden.shape[1]
    tiles = matrix_tiles(min(n, _MAX_SLAB_ROWS), hidden, weight)
    slab_sums = torch.empty(n, triton.cdiv(len(weight), tiles.tokens), dtype=torch.float32, device=hidden.device)
    of_hidden = None
    if made.hidden is not None:
        of_hidden = torch.zeros(n, H, dtype=torch.float32, device=hidden.device)
    trained = hidden[dense.ids] if made.weight is not None else None  # [n, H]
    for first_token, room in slabs(weight, n):
        tokens = slice(first_token, first_token + room.shape[1])
        of_tokens: torch.Tensor | None = None  # fp32 [width, H]
        for first in range(0, n, _MAX_SLAB_ROWS):
            block = slice(first, min(first + _MAX_SLAB_ROWS, n))
            slab = room[: block.stop - block.start]
            rows = dense.part(block.start, block.stop)
            gradient_slab(head, rows, statistics, first_token, slab, slab_sums[block], tiles)
            if pairs.rows is not None:
                clear_pairs(pairs, lists, rows, first_token, slab)
            if of_hidden is not None:
                matrix_product(slab, weight[tokens], of_hidden[block])
            if trained is not None:
                of_tokens = matrix_product(slab.T, trained[block], of_tokens)
            if made.bias is not None:
                made.bias[tokens] += slab.sum(0, dtype=torch.float32) * unit
        if made.weight is not None and of_tokens is not None:
            torch.mul(of_tokens, unit, out=made.weight[tokens])
            if lists.by_token is not None and made.of_pairs is not None:
                _keep_rows(lists.by_token.keys, first_token, of_tokens, made.of_pairs)
    return of_hidden, slab_sums


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


def pair_gradients(
    pairs: Pairs,
    lists: PairLists,
    dense: DenseRows,
    slab_sums: torch.Tensor,
    unit: torch.Tensor,
    gradients: torch.Tensor,
) -> None:
    """Write d of the dense rows' pairs to `gradients`, fp32 [N]."""
    launch(
        pair_gradients_kernel,
        (len(dense.ids),),
        num_warps=1,
        segments_ptr=dense.segments,
        order_ptr=lists.by_row.order,
        offsets_ptr=lists.by_row.offsets,
        tokens_ptr=pairs.tokens,
        log_probs_ptr=pairs.log_probs,
        coefficients_ptr=pairs.coefficients,
        totals_ptr=lists.rows.totals,
        rests_ptr=lists.rows.rests,
        targets_ptr=lists.rows.targets,
        sums_ptr=slab_sums,
        unit_ptr=unit,
        gradients_ptr=gradients,
        num_tiles=slab_sums.shape[1],
        BLOCK_M=_MEMBERS_AT_ONCE,
        BLOCK_T=_TILES_AT_ONCE,
    )


def _keep_rows(keys: torch.Tensor, first_token: int, of_tokens: torch.Tensor, kept: torch.Tensor) -> None:
    H = kept.shape[1]
    launch(
        keep_rows_kernel,
        (len(keys), triton.cdiv(H, _COLUMNS_AT_ONCE)),
        num_warps=2,
        keys_ptr=keys,
        rows_ptr=of_tokens,
        kept_ptr=kept,
        first=first_token,
        count=len(of_tokens),
        H=H,
        BLOCK_H=_COLUMNS_AT_ONCE,
    )


def _add_pairs_to_head(
    head: Head, pairs: Pairs, by_token: Segments, gradients: torch.Tensor, unit: torch.Tensor, made: _Gradients
) -> None:
    """Add d hidden to the weight's gradient and d to the bias's, at the tokens that occur."""
    members = torch.arange(len(gradients), device=gradients.device)
    if made.weight is not None:
        rows = members if pairs.rows is None else pairs.rows
        segment_sum(head.hidden, rows, gradients, by_token, into=made.weight, base=made.of_pairs, unit=unit)
    if made.bias is not None:
        one = torch.ones_like(gradients)
        base = made.bias[by_token.keys][:, None]
        segment_sum(gradients[:, None], members, one, by_token, into=made.bias[:, None], base=base, unit=one[:1])
