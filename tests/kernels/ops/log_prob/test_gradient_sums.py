"""Segmented sums, matrix products that add up in fp32, units for fp16."""

from __future__ import annotations

import math

import pytest
import torch
from tawin_kernels.ops.log_prob import gradient_sums
from tawin_kernels.ops.log_prob.gradient_sums import matrix_product, segment_sum, unit_of
from tawin_kernels.ops.log_prob.segments import group_by

from ...devices import DEVICE, KERNEL_DTYPES


@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
@pytest.mark.parametrize("H", [1, 5, 300])
def test_a_segment_is_the_weighted_sum_of_its_members_and_a_part_is_some_segments(dtype, H):
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(7, H, generator=generator).to(dtype).to(DEVICE)
    index = torch.randint(0, 7, (30,), generator=generator).to(DEVICE)
    coefficients = torch.randn(30, generator=generator).to(DEVICE)
    keys = torch.randint(0, 5, (30,), generator=generator).to(DEVICE)
    segments = group_by(keys)
    sums = segment_sum(source, index, coefficients, segments)
    expected = torch.zeros(len(segments.keys), H, dtype=torch.float64, device=DEVICE)
    place = torch.searchsorted(segments.keys, keys)
    expected.index_add_(0, place, coefficients.double()[:, None] * source.double()[index])
    # fp32 sums of up to 30 terms of size one.
    torch.testing.assert_close(sums.double(), expected, atol=5e-6, rtol=0)
    part = segment_sum(source, index, coefficients, segments.part(1, 3))
    assert torch.equal(part, sums[1:3])


def test_sums_are_added_to_a_base_and_written_to_the_rows_of_their_keys():
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(7, 40, generator=generator).to(DEVICE)
    keys = torch.tensor([3, 1, 3, 5, 1, 3], device=DEVICE)
    index, coefficients = torch.arange(6, device=DEVICE), torch.randn(6, generator=generator).to(DEVICE)
    segments = group_by(keys)  # 1, 3, 5
    sums = segment_sum(source, index, coefficients, segments)
    base = torch.randn(2, 40, generator=generator).to(DEVICE)
    unit = torch.tensor(0.25, device=DEVICE)
    into = torch.zeros(6, 40, dtype=torch.float16, device=DEVICE)
    chosen = torch.tensor([2, 0], dtype=torch.int32, device=DEVICE)
    assert segment_sum(source, index, coefficients, segments, into=into, base=base, unit=unit, chosen=chosen) is into
    # One rounding to fp16, of what fp32 sums up in another order.
    torch.testing.assert_close(into[[5, 1]].float(), sums[[2, 0]] + 0.25 * base, atol=2e-6, rtol=2**-11)
    skip = torch.tensor([True, False, True], device=DEVICE)
    segment_sum(source, index, coefficients, segments, into=into, skip=skip)
    torch.testing.assert_close(into[3].float(), sums[1], atol=2e-6, rtol=2**-11)
    torch.testing.assert_close(into[5].float(), sums[2] + 0.25 * base[0], atol=2e-6, rtol=2**-11)  # as it was
    assert not bool(into[[0, 2, 4]].any())


@pytest.mark.parametrize("most_parts", [1024, 2])
def test_long_segments_are_summed_in_parts_and_short_ones_beside_them_are_not(monkeypatch, most_parts):
    monkeypatch.setattr(gradient_sums, "_MOST_PARTS", most_parts)
    generator = torch.Generator().manual_seed(0)
    # Long ones that begin and end within a piece of 32, at its border, side by side, and with short ones between.
    lengths = torch.tensor([5, 33, 1, 64, 25, 32, 40, 3, 300, 1])
    keys = torch.arange(10).repeat_interleave(lengths)[torch.randperm(504, generator=generator)].to(DEVICE)
    source = torch.randn(504, 300, generator=generator).to(DEVICE)
    index = torch.randint(0, 504, (504,), generator=generator).to(DEVICE)
    coefficients = torch.randn(504, generator=generator).to(DEVICE)
    segments = group_by(keys)
    expected = torch.zeros(10, 300, dtype=torch.float64, device=DEVICE)
    expected.index_add_(0, keys, coefficients.double()[:, None] * source.double()[index])
    sums = segment_sum(source, index, coefficients, segments)
    # fp32 sums of up to 300 terms of size one.
    torch.testing.assert_close(sums.double(), expected, atol=3e-5, rtol=0)
    assert torch.equal(sums, segment_sum(source, index, coefficients, segments))
    part = segment_sum(source, index, coefficients, segments.part(3, 9))
    assert torch.equal(part, sums[3:9])
    skip, into = torch.arange(10, device=DEVICE) % 2 == 0, torch.zeros(10, 300, device=DEVICE)
    segment_sum(source, index, coefficients, segments, into=into, skip=skip)
    assert torch.equal(into, sums * ~skip[:, None])


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
    unit = unit_of(torch.tensor([0.1 * largest, -largest], device=DEVICE))
    mantissa, _ = torch.frexp(unit)
    assert mantissa.item() == 0.5
    assert 2.0**13 < largest / unit.item() < 2.0**15
    assert unit_of(torch.zeros(3, device=DEVICE)).item() > 0


@pytest.mark.parametrize("broken", [math.inf, -math.inf, math.nan])
def test_a_unit_is_that_of_the_finite_values(broken):
    values = torch.tensor([0.1, broken, -3.0], device=DEVICE)
    assert unit_of(values).item() == unit_of(values[[0, 2]]).item() == 2.0**-12
