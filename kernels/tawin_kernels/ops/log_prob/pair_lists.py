"""Which rows and pairs a backward pass has work for, listed on the device.

A pair is a token and the row (hidden state) that predicts it; several pairs may share a row. Used by
`gradient`. Reading how many rows there are is the one time that it waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...arguments import IGNORED_TOKEN
from ...launch import launch
from .logsumexp import live_rows
from .segments import Segments, list_segments

# A row whose coefficients add up to less than this part of their absolute sum has rounding dust and no dense part.
_CANCELLED = 2.0**-22
_MEMBERS_AT_ONCE = 32


class Pairs(NamedTuple):
    """The pairs of a call, [N] each."""

    tokens: torch.Tensor  # int64, some of them IGNORED_TOKEN
    rows: torch.Tensor | None  # int64; None: pair i has row i
    log_probs: torch.Tensor  # fp32, or within a row as far apart as they
    coefficients: torch.Tensor  # fp32, d loss / d logit of the token, through log p's first term


class RowTotals(NamedTuple):
    """Of the rows with pairs, [S] each."""

    totals: torch.Tensor  # fp32, the sum of the coefficients
    rests: torch.Tensor  # fp32, of those of the pairs with another token than the target
    targets: torch.Tensor  # int64, the likeliest of the pairs' tokens
    highest: torch.Tensor  # fp32, its log p
    is_dense: torch.Tensor  # bool: the coefficients do not cancel


class PairLists(NamedTuple):
    """Pairs without a coefficient are in no list, unless all pairs were asked for."""

    by_row: Segments
    rows: RowTotals
    dense: torch.Tensor  # int32 [n], the segments of by_row whose coefficients do not cancel
    by_token: Segments | None


class DenseRows(NamedTuple):
    """Rows with a dense part, n of them."""

    segments: torch.Tensor  # int32 [n], which of `PairLists.by_row` each is
    ids: torch.Tensor  # int64 [n], rows of hidden
    coefficients: torch.Tensor  # fp32 [n], C in units
    targets: torch.Tensor  # int64 [n], the token left out of the slab

    def part(self, first: int, last: int) -> DenseRows:
        return DenseRows(*(column[first:last] for column in self))


@triton.jit
def row_totals_kernel(
    order_ptr,
    offsets_ptr,
    count_ptr,
    tokens_ptr,
    log_probs_ptr,
    coefficients_ptr,
    totals_ptr,
    rests_ptr,
    targets_ptr,
    highest_ptr,
    is_dense_ptr,
    CANCELLED: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    segment = tl.program_id(0).to(tl.int64)
    first, end = tl.full([], 0, tl.int64), tl.full([], 0, tl.int64)
    if segment < tl.load(count_ptr):
        first, end = tl.load(offsets_ptr + segment), tl.load(offsets_ptr + segment + 1)
    total = 0.0
    absolute = 0.0
    likeliest = float("-inf")
    target = tl.full([], -1, tl.int64)
    for start in range(first, end, BLOCK_M):
        places = start + tl.arange(0, BLOCK_M)
        is_member = places < end
        members = tl.load(order_ptr + places, mask=is_member, other=0)
        coefficients = tl.load(coefficients_ptr + members, mask=is_member, other=0.0)
        total += tl.sum(coefficients, 0)
        absolute += tl.sum(tl.abs(coefficients), 0)
        log_probs = tl.load(log_probs_ptr + members, mask=is_member, other=float("-inf"))
        best, at = tl.max(log_probs, 0, return_indices=True)
        if (best > likeliest) | (target < 0):
            likeliest = best
            target = tl.load(tokens_ptr + tl.load(order_ptr + start + at))

    rest = 0.0
    for start in range(first, end, BLOCK_M):
        places = start + tl.arange(0, BLOCK_M)
        is_member = places < end
        members = tl.load(order_ptr + places, mask=is_member, other=0)
        tokens = tl.load(tokens_ptr + members, mask=is_member, other=0)
        coefficients = tl.load(coefficients_ptr + members, mask=is_member & (tokens != target), other=0.0)
        rest += tl.sum(coefficients, 0)
    tl.store(totals_ptr + segment, total)
    tl.store(rests_ptr + segment, rest)
    tl.store(targets_ptr + segment, target)
    tl.store(highest_ptr + segment, likeliest)
    # What is not finite does not cancel: it is to be seen in the result.
    cancels = (tl.abs(total) <= CANCELLED * absolute) & (absolute < float("inf"))
    tl.store(is_dense_ptr + segment, cancels == 0)


def list_pairs(pairs: Pairs, R: int, V: int, *, by_token: bool, all_pairs: bool = False) -> PairLists:
    """The lists of `pairs`, whose rows are below R and whose tokens below V. Waits for the device."""
    lists, counts = list_pairs_on_device(pairs, R, V, by_token=by_token, all_pairs=all_pairs)
    num_rows, num_dense, *num_tokens = torch.cat(counts).tolist()
    return PairLists(
        lists.by_row.part(0, num_rows),
        RowTotals(*(column[:num_rows] for column in lists.rows)),
        lists.dense[:num_dense],
        None if lists.by_token is None else lists.by_token.part(0, num_tokens[0]),
    )


def list_pairs_on_device(
    pairs: Pairs, R: int, V: int, *, by_token: bool, all_pairs: bool = False
) -> tuple[PairLists, tuple[torch.Tensor, ...]]:
    """Lists as long as they could be; int32 [1] each: how many rows, dense rows and tokens there are."""
    tokens, rows, _, coefficients = pairs
    is_live = tokens != IGNORED_TOKEN
    if not all_pairs:
        is_live &= coefficients != 0
    if rows is None:
        order, num_rows = live_rows(is_live)
        members = order.long()
        by_row = Segments(members, members, torch.arange(len(tokens) + 1, device=tokens.device), 1)
    else:
        # By token within a row: pairs of one token stand side by side.
        by_row, num_rows = list_segments(torch.where(is_live, rows * V + tokens, R * V), R * V, width=V)
    counts = [num_rows]
    totals = _row_totals(pairs, by_row, num_rows, min(R, len(tokens)))
    dense, num_dense = live_rows(totals.is_dense)
    counts.append(num_dense)
    of_tokens = None
    if by_token:
        of_tokens, num_tokens = list_segments(torch.where(is_live, tokens, V), V)
        counts.append(num_tokens)
    return PairLists(by_row, totals, dense, of_tokens), tuple(counts)


def _row_totals(pairs: Pairs, by_row: Segments, num_rows: torch.Tensor, most: int) -> RowTotals:
    """Of the `most` rows that there could be; those beyond num_rows [1] are not dense and have a total of 0."""
    device = pairs.tokens.device
    result = RowTotals(
        torch.empty(most, dtype=torch.float32, device=device),
        torch.empty(most, dtype=torch.float32, device=device),
        torch.empty(most, dtype=torch.int64, device=device),
        torch.empty(most, dtype=torch.float32, device=device),
        torch.empty(most, dtype=torch.bool, device=device),
    )
    launch(
        row_totals_kernel,
        (most,),
        num_warps=1,
        order_ptr=by_row.order,
        offsets_ptr=by_row.offsets,
        count_ptr=num_rows,
        tokens_ptr=pairs.tokens,
        log_probs_ptr=pairs.log_probs,
        coefficients_ptr=pairs.coefficients,
        totals_ptr=result.totals,
        rests_ptr=result.rests,
        targets_ptr=result.targets,
        highest_ptr=result.highest,
        is_dense_ptr=result.is_dense,
        CANCELLED=_CANCELLED,
        BLOCK_M=_MEMBERS_AT_ONCE,
    )
    return result


@triton.jit(do_not_specialize=["first_token", "width"])
def clear_pairs_kernel(
    segments_ptr,
    order_ptr,
    offsets_ptr,
    tokens_ptr,
    slab_ptr,
    first_token,
    width,
    stride_slab_row,
    BLOCK_M: tl.constexpr,
):
    """Zeros at the tokens of the pairs of slab row i, which belongs to segment segments[i]."""
    place = tl.program_id(0).to(tl.int64)
    segment = tl.load(segments_ptr + place)
    end = tl.load(offsets_ptr + segment + 1)
    for start in range(tl.load(offsets_ptr + segment), end, BLOCK_M):
        places = start + tl.arange(0, BLOCK_M)
        members = tl.load(order_ptr + places, mask=places < end, other=0)
        columns = tl.load(tokens_ptr + members, mask=places < end, other=-1) - first_token
        is_here = (columns >= 0) & (columns < width) & (places < end)
        zeros = tl.zeros([BLOCK_M], dtype=slab_ptr.dtype.element_ty)
        tl.store(slab_ptr + place * stride_slab_row + columns, zeros, mask=is_here)


def clear_pairs(pairs: Pairs, lists: PairLists, dense: DenseRows, first_token: int, slab: torch.Tensor) -> None:
    """Write 0 to `slab`, which holds the tokens from first_token on of the dense rows, where a pair has its token."""
    launch(
        clear_pairs_kernel,
        (len(slab),),
        num_warps=1,
        segments_ptr=dense.segments,
        order_ptr=lists.by_row.order,
        offsets_ptr=lists.by_row.offsets,
        tokens_ptr=pairs.tokens,
        slab_ptr=slab,
        first_token=first_token,
        width=slab.shape[1],
        stride_slab_row=slab.stride(0),
        BLOCK_M=_MEMBERS_AT_ONCE,
    )
