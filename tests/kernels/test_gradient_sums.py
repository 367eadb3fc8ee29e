"""Segmented sums, matrix products that add up in fp32, units for fp16."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tawin_kernels.gradient_sums import group_by, matrix_product, segment_sum, unit_of

from .devices import DEVICE, KERNEL_DTYPES


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_members_are_grouped_by_key_in_their_old_order(keys):
    segments = group_by(torch.tensor(keys, device=DEVICE))
    assert segments.keys.tolist() == sorted(set(keys))
    groups = [
        segments.order[first:end].tolist() for first, end in zip(segments.offsets, segments.offsets[1:], strict=False)
    ]
    assert groups == [[i for i, key in enumerate(keys) if key == wanted] for wanted in sorted(set(keys))]


def test_distinct_keys_are_their_own_groups():
    keys = torch.tensor([3, 5, 9], device=DEVICE)
    known = group_by(keys, sorted_and_distinct=True)
    for mine, other in zip(known, group_by(keys), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
@pytest.mark.parametrize("H", [1, 5, 300])
def test_a_segment_is_the_weighted_sum_of_its_members_and_a_part_is_some_segments(dtype, H):
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(7, H, generator=generator).to(dtype).to(DEVICE)
    index = torch.randint(0, 7, (30,), generator=generator).to(DEVICE)
    coefficients = torch.randn(30, generator=generator).to(DEVICE)
    keys = torch.randint(0, 5, (30,), generator=generator).to(DEVICE)
    segments = group_by(keys)
    sums, totals = segment_sum(source, index, coefficients, segments)
    expected = torch.zeros(len(segments.keys), H, dtype=torch.float64, device=DEVICE)
    place = torch.searchsorted(segments.keys, keys)
    expected.index_add_(0, place, coefficients.double()[:, None] * source.double()[index])
    # fp32 sums of up to 30 terms of size one.
    torch.testing.assert_close(sums.double(), expected, atol=5e-6, rtol=0)
    for s, key in enumerate(segments.keys):
        own = coefficients[keys == key].double()
        assert totals[s].tolist() == pytest.approx([float(own.sum()), float(own.abs().sum())], abs=1e-5)
    part, _ = segment_sum(source, index, coefficients, segments.part(1, 3))
    assert torch.equal(part, sums[1:3])


@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
def test_a_product_is_summed_in_fp32_and_added_in_place(dtype):
    left, right = torch.randn(4, 9).to(dtype).to(DEVICE), torch.randn(9, 3).to(dtype).to(DEVICE)
    exact = left.double() @ right.double()
    into = torch.ones(4, 3, device=DEVICE)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        product = matrix_product(left, right)
        assert matrix_product(left, right, into) is into
    assert product.dtype == torch.float32
    torch.testing.assert_close(product.double(), exact, atol=1e-5, rtol=0)  # nine terms in fp32
    torch.testing.assert_close(into.double(), exact + 1.0, atol=1e-5, rtol=0)


@pytest.mark.parametrize("largest", [1e-20, 1e-6, 0.9999999, 1.0, 1.0000001, 5e7])
def test_a_unit_is_a_power_of_two_that_keeps_the_largest_value_within_fp16(largest):
    unit = unit_of(torch.tensor([0.1 * largest, -largest]))
    mantissa, _ = torch.frexp(unit)
    assert mantissa.item() == 0.5
    assert 2.0**13 < largest / unit.item() < 2.0**15
    assert unit_of(torch.zeros(3)).item() > 0
