"""tools.compiled.copies on PTX by hand; test_report.py has what Triton compiles."""

from __future__ import annotations

import pytest

from tools.compiled.copies import unequal_copies

EXCHANGE = "shfl.sync.bfly.b32 \t%r2, %r1, 16, 31, -1;\n"


@pytest.mark.parametrize(
    "ptx",
    [
        EXCHANGE + "fma.rn.f32 \t%r5, %r3, %r4, %r2;",
        "shfl.sync.bfly.b32 \t%r2|%p1, %r1, 16, 31, -1;\nfma.rn.f32 \t%r5, %r3, %r4, %r2;",
        "mul.f32 \t%r1, %r3, %r4;\n" + EXCHANGE + "add.f32 \t%r5, %r1, %r2;",
        EXCHANGE + "mov.b32 \t%f1, %r2;\n@%p1 fma.rn.f32 \t%f5, %f3, %f4, %f1;",
        EXCHANGE + "mov.b64 \t%rd1, {%r1, %r2};\nfma.rn.f64 \t%rd5, %rd3, %rd4, %rd1;",
        EXCHANGE + "mov.b64 \t%rd1, {%r1, %r2};\nfma.rn.f32x2 \t%rd5, %rd3, %rd4, %rd1;",
    ],
)
def test_a_product_rounded_where_it_was_sent_and_not_where_it_was_made_is_found(ptx: str) -> None:
    assert len(unequal_copies(ptx)) == 1


@pytest.mark.parametrize(
    "ptx",
    [
        EXCHANGE + "add.f32 \t%r5, %r1, %r2;",
        "mul.rn.f32 \t%r1, %r3, %r4;\n" + EXCHANGE + "add.f32 \t%r5, %r1, %r2;",
        "mul.f32 \t%r1, %r3, %r4;\n" + EXCHANGE + "add.rn.f32 \t%r5, %r1, %r2;",
        EXCHANGE + "add.f32 \t%r5, %r1, %r2;\nfma.rn.f32 \t%r6, %r3, %r4, %r5;",
        EXCHANGE + "ld.shared.b32 \t%r2, [%r9];\nfma.rn.f32 \t%r5, %r3, %r4, %r2;",
        "shfl.sync.idx.b32 \t%r2, %r1, 0, 31, -1;\nfma.rn.f32 \t%r5, %r3, %r4, %r2;",
    ],
)
def test_what_is_the_same_in_all_lanes_is_not(ptx: str) -> None:
    assert unequal_copies(ptx) == []
