"""Members grouped by key: in order, with and without keys that do not count."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tawin_kernels.ops.log_prob import segments
from tawin_kernels.ops.log_prob.segments import group_by, list_segments

from ...devices import DEVICE


def members_of(grouped, count):
    offsets = grouped.offsets.tolist()
    return [grouped.order[offsets[s] : offsets[s + 1]].tolist() for s in range(count)]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_members_are_grouped_by_key_in_their_old_order(keys):
    grouped = group_by(torch.tensor(keys, device=DEVICE))
    assert grouped.keys.tolist() == sorted(set(keys))
    expected = [[i for i, key in enumerate(keys) if key == wanted] for wanted in sorted(set(keys))]
    assert members_of(grouped, len(expected)) == expected


@settings(max_examples=30)
@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 5), st.sampled_from([4, 1024]))
def test_segments_are_listed_without_the_keys_that_do_not_count(keys, width, at_once):
    end = 20
    before, segments._AT_ONCE = segments._AT_ONCE, at_once
    try:
        grouped, count = list_segments(torch.tensor(keys, dtype=torch.int64, device=DEVICE), end, width=width)
    finally:
        segments._AT_ONCE = before
    expected = sorted({key // width for key in keys if key < end})
    assert grouped.keys[: count.item()].tolist() == expected
    # Within a segment by the whole key, equal ones in their old order.
    ordered = [[i for i in sorted(range(len(keys)), key=lambda i: keys[i]) if keys[i] // width == s] for s in expected]
    ordered = [[i for i in members if keys[i] < end] for members in ordered]
    assert members_of(grouped, count.item()) == ordered
