"""top_k_stable: the order of equal values, of zeros and of infinities."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from tawin_kernels.top_k import top_k_stable

INF = math.inf
values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-149), INF, -INF]) | st.floats(
    width=32, allow_nan=False
)
rows = st.integers(0, 12).flatmap(
    lambda width: st.lists(st.lists(values, min_size=width, max_size=width), min_size=1, max_size=3)
)


@given(rows, st.integers(1, 15), st.sampled_from([torch.float32, torch.float64]))
def test_equal_values_come_in_the_order_of_their_indexes(scores, k, dtype):
    best, indexes = top_k_stable(torch.tensor(scores, dtype=dtype), k)
    for b, row in enumerate(scores):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
        missing = k - len(order)
        assert indexes[b].tolist() == order + [0] * missing
        assert best[b].tolist() == [row[i] for i in order] + [-INF] * missing


def test_a_wide_row_of_ties_keeps_its_order():
    best, indexes = top_k_stable(torch.zeros(2, 100_000), 1000)
    assert torch.equal(indexes, torch.arange(1000).expand(2, 1000))
    assert bool((best == 0).all())
