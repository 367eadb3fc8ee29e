"""The guards that all tests of kernels run under see what they are there for."""

from __future__ import annotations

import os

import pytest
import torch
import triton
import triton.language as tl
from tawin_kernels.launch import INTERPRETED
from triton import knobs

from .conftest import MARGIN, check_margins
from .devices import DEVICE

pytestmark = pytest.mark.skipif(os.environ.get("TAWIN_GUARDED_MEMORY") == "0", reason="guards are switched off")


def fill(out_ptr, first, end, BLOCK: tl.constexpr):
    places = first + tl.arange(0, BLOCK)
    tl.store(out_ptr + places, 1.0, mask=places < end)


with knobs.runtime.scope():
    knobs.runtime.interpret = INTERPRETED  # as the package's kernels were made
    fill_kernel = triton.jit(fill)


@pytest.mark.parametrize(("first", "end", "is_seen"), [(0, 5, False), (0, 6, True), (-1, 5, True)])
def test_a_kernel_that_writes_past_its_output_is_seen(first: int, end: int, is_seen: bool) -> None:
    out = torch.empty(5, device=DEVICE)
    fill_kernel[(1,)](out, first, end, BLOCK=8)
    assert out.tolist() == [1.0] * 5
    if not is_seen:
        check_margins()
        return
    with pytest.raises(AssertionError, match="written beside an output of 5 elements"):
        check_margins()


def test_an_element_that_no_kernel_writes_is_wrong() -> None:
    out = torch.empty(2, 4, device=DEVICE)
    fill_kernel[(1,)](out, 0, 7, BLOCK=8)
    assert out.isnan().sum() == 1 and bool(out[1, 3].isnan())
    numbers = torch.empty(3, dtype=torch.int32, device=DEVICE)
    assert numbers.tolist() == [2**30] * 3
    assert torch.empty_like(numbers).tolist() == [2**30] * 3


def test_guarded_tensors_are_as_aligned_as_any() -> None:
    for dtype in (torch.float16, torch.float32, torch.int64):
        assert torch.empty(7, dtype=dtype, device=DEVICE).data_ptr() % 128 in (0, 64)
    assert MARGIN * torch.float16.itemsize % 16 == 0  # what Triton takes a pointer to be aligned to
