"""Sums in fp32 that gradients are made of: segmented sums of matrix rows, and the library's matrix product.

    out_s = sum of coefficient_i source_{index_i} over the members i of segment s

Members are added in their order, one program a segment and block of columns, so the same input gives the same bits
(index_add on a GPU adds in whatever order its threads arrive). Knows nothing of tokens or losses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .launch import launch

_COLUMNS_AT_ONCE = 256


class Segments(NamedTuple):
    """Members grouped by key: segment s has the members order[offsets[s] : offsets[s + 1]]."""

    keys: torch.Tensor  # int64 [S], distinct, ascending
    order: torch.Tensor  # int64 [P], members by key, equal keys in their old order
    offsets: torch.Tensor  # int64 [S + 1]

    def part(self, first: int, last: int) -> Segments:
        """The segments first .. last - 1."""
        return Segments(self.keys[first:last], self.order, self.offsets[first : last + 1])


@triton.jit
def segment_sum_kernel(
    source_ptr,
    index_ptr,
    coefficients_ptr,
    order_ptr,
    offsets_ptr,
    out_ptr,
    totals_ptr,
    H,
    stride_source_row,
    BLOCK_H: tl.constexpr,
):
    segment = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = columns < H
    total = 0.0
    absolute = 0.0
    sums = tl.zeros([BLOCK_H], dtype=tl.float32)
    for place in range(tl.load(offsets_ptr + segment), tl.load(offsets_ptr + segment + 1)):
        member = tl.load(order_ptr + place)
        row = tl.load(index_ptr + member)
        coefficient = tl.load(coefficients_ptr + member)
        source = tl.load(source_ptr + row * stride_source_row + columns, mask=inside, other=0.0)
        sums += coefficient * source.to(tl.float32)
        total += coefficient
        absolute += tl.abs(coefficient)
    tl.store(out_ptr + segment * H + columns, sums, mask=inside)
    if tl.program_id(1) == 0:
        tl.store(totals_ptr + segment * 2, total)
        tl.store(totals_ptr + segment * 2 + 1, absolute)


def group_by(keys: torch.Tensor, *, sorted_and_distinct: bool = False) -> Segments:
    """Members 0 .. P - 1 grouped by their keys, int64 [P]; waits for the device unless these are known as distinct."""
    if sorted_and_distinct:
        members = torch.arange(len(keys) + 1, device=keys.device)
        return Segments(keys, members[:-1], members)
    order = keys.argsort(stable=True)
    distinct, counts = keys[order].unique_consecutive(return_counts=True)
    return Segments(distinct, order, torch.cat([counts.new_zeros(1), counts.cumsum(0)]))


def segment_sum(
    source: torch.Tensor, index: torch.Tensor, coefficients: torch.Tensor, segments: Segments
) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 [S, H], and fp32 [S, 2]: the sum of each segment's coefficients and of their absolute values.

    source [R, H], the elements of a row side by side; index int64 [P] in [0, R); coefficients fp32 [P].
    """
    count, H = len(segments.keys), source.shape[1]
    out = torch.empty(count, H, dtype=torch.float32, device=source.device)
    totals = torch.empty(count, 2, dtype=torch.float32, device=source.device)
    launch(
        segment_sum_kernel,
        (count, triton.cdiv(H, _COLUMNS_AT_ONCE)),
        num_warps=2,
        source_ptr=source,
        index_ptr=index,
        coefficients_ptr=coefficients,
        order_ptr=segments.order,
        offsets_ptr=segments.offsets,
        out_ptr=out,
        totals_ptr=totals,
        H=H,
        stride_source_row=source.stride(0),
        BLOCK_H=_COLUMNS_AT_ONCE,
    )
    return out, totals


def unit_of(values: torch.Tensor) -> torch.Tensor:
    """A power of two, fp32 scalar, in units of which the largest of `values` (fp32, not empty) lies in (2**13, 2**15).

    Operands of a matrix product that are to be stored in fp16 are stored in such units: a coefficient of 1e-4 times a
    probability of 1e-5 would be 0 in fp16. Powers of two cost no precision.
    """
    largest = values.abs().amax().clamp(min=2.0**-100)
    return (largest.log2().ceil() - 14.0).exp2()


def matrix_product(left: torch.Tensor, right: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
    """left @ right, accumulated and returned in fp32; added to `into` (fp32) in place if that is given.

    On NVIDIA GPUs the library reads bf16 and fp16 operands and writes fp32; elsewhere, where it has no such product,
    the operands are widened first.
    """
    with torch.autocast(left.device.type, enabled=False):
        if left.dtype == torch.float32 and into is not None:
            return into.addmm_(left, right)
        if left.dtype != torch.float32 and left.device.type == "cuda" and torch.version.hip is None:
            product = torch.mm(left, right, out_dtype=torch.float32)
        else:
            product = left.float() @ right.float()
    return product if into is None else into.add_(product)
