"""Members grouped by key, listed on the device: what segmented sums run over.

`list_segments` (for `pair_lists`) does not wait for the device; how many segments there are stands in device memory.
`group_by` (for `children`) waits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...launch import launch

_AT_ONCE = 1024  # of the one program that lists the segments


class Segments(NamedTuple):
    """Members grouped by key: segment s has the members order[offsets[s] : offsets[s + 1]]."""

    keys: torch.Tensor  # int64 [S], distinct, ascending
    order: torch.Tensor  # int64 [P], members by key, equal keys in their old order
    offsets: torch.Tensor  # int64 [S + 1]
    longest: int  # no segment has more members, as far as the host knows

    def part(self, first: int, last: int) -> Segments:
        """The segments first .. last - 1."""
        return Segments(self.keys[first:last], self.order, self.offsets[first : last + 1], self.longest)


@triton.jit(do_not_specialize=["N", "width", "end"])
def list_segments_kernel(
    sorted_keys_ptr,
    keys_ptr,
    offsets_ptr,
    count_ptr,
    N,
    width: tl.int64,
    end: tl.int64,
    BLOCK_N: tl.constexpr,
):
    # One program, so that the lists are in order. Keys from `end` on are no members; they stand last.
    segments = tl.full([], 0, tl.int32)
    members = tl.full([], 0, tl.int32)
    for start in range(0, N, BLOCK_N):
        places = start + tl.arange(0, BLOCK_N)
        keys = tl.load(sorted_keys_ptr + places, mask=places < N, other=end)
        before = tl.load(sorted_keys_ptr + places - 1, mask=(places > 0) & (places < N), other=-1)
        is_member = keys < end
        is_first = is_member & ((keys // width != before // width) | (places == 0))
        count = is_first.to(tl.int32)
        rank = segments + tl.cumsum(count, 0) - 1
        tl.store(keys_ptr + rank, keys // width, mask=is_first)
        tl.store(offsets_ptr + rank, places.to(tl.int64), mask=is_first)
        segments += tl.sum(count, 0)
        members += tl.sum(is_member.to(tl.int32), 0)
    tl.store(offsets_ptr + segments, tl.cast(members, tl.int64))
    tl.store(count_ptr, segments)


def list_segments(keys: torch.Tensor, end: int, *, width: int = 1) -> tuple[Segments, torch.Tensor]:
    """Members 0 .. N - 1 by their keys, int64 [N]; and the number S of segments, int32 [1], read by nobody here.

    Members whose key is `end` or more belong to no segment. A segment's key is that of its members divided by `width`,
    rounded down; within a segment members stand by their whole key. Of keys and offsets the first S, S + 1 count.
    """
    N = len(keys)
    sorted_keys, order = keys.sort(stable=True)
    segments = Segments(torch.empty_like(keys), order, keys.new_empty(N + 1), N)
    count = torch.empty(1, dtype=torch.int32, device=keys.device)
    launch(
        list_segments_kernel,
        (1,),
        sorted_keys_ptr=sorted_keys,
        keys_ptr=segments.keys,
        offsets_ptr=segments.offsets,
        count_ptr=count,
        N=N,
        width=width,
        end=end,
        BLOCK_N=_AT_ONCE,
    )
    return segments, count


def group_by(keys: torch.Tensor) -> Segments:
    """Members 0 .. P - 1 grouped by their keys, int64 [P]. Waits for the device to count the groups."""
    order = keys.argsort(stable=True)
    distinct, counts = keys[order].unique_consecutive(return_counts=True)
    return Segments(distinct, order, torch.cat([counts.new_zeros(1), counts.cumsum(0)]), len(keys))
