"""Sums in fp32 that gradients are made of: segmented sums of matrix rows, and the library's matrix product.

    out_s = base_s unit + sum of coefficient_i source_{index_i} over the members i of segment s

Members are added in their order, one program per segment and block of columns, so the same input gives the same bits
(index_add on a GPU adds in whatever order its threads arrive). A long segment, as an end token's, is first summed in
parts by programs of their own. Used by `gradient` and `children`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ...launch import REGISTERS, launch
from .segments import Segments

_COLUMNS_AT_ONCE = 256
_MEMBERS_AT_ONCE = 8  # their loads are on the way together
_PART = 32  # members: more of a segment are summed in parts, where there are not too many of those
_MOST_PARTS = 1024
_VALUES_AT_ONCE = 1024  # of the one program that looks for the largest


@triton.jit
def _sum_of_members(
    source_ptr,
    index_ptr,
    coefficients_ptr,
    order_ptr,
    first,
    end,
    columns,
    H,
    stride_source_row,
    BLOCK_M: tl.constexpr,
):
    """fp32, the shape of columns: the members order[first : end]."""
    inside = columns < H
    sums = tl.zeros(columns.shape, dtype=tl.float32)
    for start in range(first, end, BLOCK_M):
        places = start + tl.arange(0, BLOCK_M)
        is_member = places < end
        members = tl.load(order_ptr + places, mask=is_member, other=0)
        rows = tl.load(index_ptr + members, mask=is_member, other=0)
        coefficients = tl.load(coefficients_ptr + members, mask=is_member, other=0.0)
        source = tl.load(
            source_ptr + rows[:, None] * stride_source_row + columns[None, :],
            mask=is_member[:, None] & inside[None, :],
            other=0.0,
        )
        sums += tl.sum(coefficients[:, None] * source.to(tl.float32), 0)
    return sums


@triton.jit(do_not_specialize=["S", "part"])
def segment_parts_kernel(
    source_ptr,
    index_ptr,
    coefficients_ptr,
    order_ptr,
    offsets_ptr,
    skip_ptr,
    parts_ptr,
    S,
    part,
    H,
    stride_source_row,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Places are cut at multiples of `part`. At most two segments longer than that have members in one piece: one from
    before it, whose sum goes to row 0 of the piece, and one that begins in it, row 1."""
    piece = (tl.program_id(0) // 2).to(tl.int64)
    start, stop = piece * part, (piece + 1) * part
    begins_here = tl.program_id(0) % 2
    place = tl.where(begins_here == 1, stop - 1, start)
    segment = tl.full([], 0, tl.int32)
    above = tl.full([], 0, tl.int32) + S
    while above - segment > 1:
        middle = (segment + above) // 2
        is_below = tl.load(offsets_ptr + middle) <= place
        segment = tl.where(is_below, middle, segment)
        above = tl.where(is_below, above, middle)
    first, end = tl.load(offsets_ptr + segment), tl.load(offsets_ptr + segment + 1)
    is_wanted = (first <= place) & (place < end) & (end - first > part) & ((begins_here == 0) | (first > start))
    if skip_ptr is not None:
        is_wanted &= tl.load(skip_ptr + segment) == 0
    if is_wanted:
        columns = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
        sums = _sum_of_members(
            source_ptr,
            index_ptr,
            coefficients_ptr,
            order_ptr,
            tl.maximum(first, start),
            tl.minimum(end, stop),
            columns,
            H,
            stride_source_row,
            BLOCK_M,
        )
        tl.store(parts_ptr + (2 * piece + begins_here) * H + columns, sums, mask=columns < H)


@triton.jit(do_not_specialize=["part"])
def segment_sum_kernel(
    source_ptr,
    index_ptr,
    coefficients_ptr,
    order_ptr,
    offsets_ptr,
    keys_ptr,
    chosen_ptr,
    skip_ptr,
    parts_ptr,
    base_ptr,
    unit_ptr,
    out_ptr,
    part,
    H,
    stride_source_row,
    stride_out_row,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    segment = place
    if chosen_ptr is not None:
        segment = tl.load(chosen_ptr + place).to(tl.int64)
    is_wanted = True
    if skip_ptr is not None:
        is_wanted = tl.load(skip_ptr + segment) == 0
    if is_wanted:
        columns = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
        inside = columns < H
        first, end = tl.load(offsets_ptr + segment), tl.load(offsets_ptr + segment + 1)
        has_parts = False
        if parts_ptr is not None:
            has_parts = end - first > part
        # Without parts all members are added here, with them none is.
        sums = _sum_of_members(
            source_ptr,
            index_ptr,
            coefficients_ptr,
            order_ptr,
            first,
            tl.where(has_parts, first, end),
            columns,
            H,
            stride_source_row,
            BLOCK_M,
        )
        if parts_ptr is not None:
            last_piece = tl.where(has_parts, tl.cdiv(end, part), first // part)
            for piece in range(first // part, last_piece, BLOCK_M):
                pieces = piece + tl.arange(0, BLOCK_M)
                rows = 2 * pieces + (pieces * part < first).to(tl.int64)
                mask = (pieces < last_piece)[:, None] & inside[None, :]
                sums += tl.sum(tl.load(parts_ptr + rows[:, None] * H + columns[None, :], mask=mask, other=0.0), 0)
        if base_ptr is not None:
            base = tl.load(base_ptr + place * H + columns, mask=inside, other=0.0)
            sums += base * tl.load(unit_ptr)
        row = place
        if keys_ptr is not None:
            row = tl.load(keys_ptr + segment)
        tl.store(out_ptr + row * stride_out_row + columns, sums.to(out_ptr.dtype.element_ty), mask=inside)


def segment_sum(
    source: torch.Tensor,
    index: torch.Tensor,
    coefficients: torch.Tensor,
    segments: Segments,
    *,
    into: torch.Tensor | None = None,
    base: torch.Tensor | None = None,
    unit: torch.Tensor | None = None,
    chosen: torch.Tensor | None = None,
    skip: torch.Tensor | None = None,
) -> torch.Tensor:
    """fp32 [S, H]; or written, in its dtype, to the rows `segments.keys` of `into` [any, H], which is returned.

    source [R, H], the elements of a row side by side; index int64 [P] in [0, R); coefficients fp32 [P].
    base fp32 [S, H], unit fp32 scalar: base * unit is added before the result is rounded.
    chosen, int32 or int64 [C]: these segments only, and base is [C, H] then. skip bool [S]: not those.
    """
    count = len(segments.keys) if chosen is None else len(chosen)
    members, H = len(segments.order), source.shape[1]
    out = torch.empty(count, H, dtype=torch.float32, device=source.device) if into is None else into
    part = max(_PART, triton.next_power_of_2(triton.cdiv(members, _MOST_PARTS)))
    shared: dict[str, Any] = {
        "source_ptr": source,
        "index_ptr": index,
        "coefficients_ptr": coefficients,
        "order_ptr": segments.order,
        "offsets_ptr": segments.offsets,
        "skip_ptr": skip,
        "parts_ptr": None,
        "part": part,
        "H": H,
        "stride_source_row": source.stride(0),
        "BLOCK_M": _MEMBERS_AT_ONCE,
        "BLOCK_H": _COLUMNS_AT_ONCE,
    }
    blocks = triton.cdiv(H, _COLUMNS_AT_ONCE)
    # Chosen are rows, whose members are those of a group at most.
    if chosen is None and min(members, segments.longest) > part and count > 0:
        pieces = triton.cdiv(members, part)
        shared["parts_ptr"] = torch.empty(2 * pieces, H, dtype=torch.float32, device=source.device)
        launch(segment_parts_kernel, (2 * pieces, blocks), num_warps=2, max_registers=REGISTERS, S=count, **shared)
    launch(
        segment_sum_kernel,
        (count, blocks),
        num_warps=2,
        max_registers=REGISTERS,
        keys_ptr=None if into is None else segments.keys,
        chosen_ptr=chosen,
        base_ptr=base,
        unit_ptr=unit,
        out_ptr=out,
        stride_out_row=out.stride(0),
        **shared,
    )
    return out


@triton.jit(do_not_specialize=["N"])
def unit_kernel(values_ptr, unit_ptr, N, BLOCK_N: tl.constexpr):
    largest = tl.full([BLOCK_N], 2.0**-100, dtype=tl.float32)
    for start in range(0, N, BLOCK_N):
        places = start + tl.arange(0, BLOCK_N)
        size = tl.abs(tl.load(values_ptr + places, mask=places < N, other=0.0))
        largest = tl.maximum(largest, tl.where(size < float("inf"), size, 0.0))  # a NaN is not smaller either
    bits = tl.max(largest, 0).to(tl.int32, bitcast=True)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(tl.int32)  # rounded up
    tl.store(unit_ptr, ((exponent - 14) << 23).to(tl.float32, bitcast=True))


def unit_of(values: torch.Tensor) -> torch.Tensor:
    """A power of two, fp32 scalar, in units of which the largest of `values` (fp32) lies in (2**13, 2**15).

    Operands of a matrix product that are to be stored in fp16 are stored in such units: a coefficient of 1e-4 times a
    probability of 1e-5 would be 0 in fp16. Powers of two cost no precision. Values that are not finite do not count:
    what they touch is lost, and nothing else.
    """
    unit = torch.empty((), dtype=torch.float32, device=values.device)
    launch(
        unit_kernel,
        (1,),
        values_ptr=values,
        unit_ptr=unit,
        N=len(values),
        BLOCK_N=_VALUES_AT_ONCE,
    )
    return unit


def matrix_product(left: torch.Tensor, right: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
    """left @ right, accumulated and returned in fp32; added to `into` (fp32) in place if that is given.

    On NVIDIA GPUs the library reads bf16 and fp16 operands and writes fp32; elsewhere, where it has no such product,
    the operands are widened first.
    """
    with torch.autocast("cpu" if left.is_meta else left.device.type, enabled=False):  # "meta" has no autocast
        if left.dtype != torch.float32 and left.device.type == "cuda" and torch.version.hip is None:
            if into is None:
                return torch.mm(left, right, out_dtype=torch.float32)
            return torch.addmm(into, left, right, out_dtype=torch.float32, out=into)
        product = (left.float(), right.float())
        return torch.mm(*product) if into is None else into.addmm_(*product)
