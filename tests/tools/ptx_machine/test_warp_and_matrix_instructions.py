"""Instructions of a warp: exchanges, reductions, mma.sync with ldmatrix and stmatrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tools.ptx_machine import Fault

from .snippets import computed, run_ptx

f32, u16, u32, s32 = np.float32, np.uint16, np.uint32, np.int32
LANES = np.arange(32, dtype=u32)


@pytest.mark.parametrize(
    ("mode", "by", "clamp", "source"),
    [
        ("bfly", 16, 31, LANES ^ 16),
        ("up", 1, 0, np.maximum(LANES.astype(int) - 1, 0)),
        ("down", 2, 31, np.where(LANES + 2 < 32, LANES + 2, LANES)),
        ("idx", 5, 31, np.full(32, 5)),
        ("idx", 1, 0x1C1F, LANES // 4 * 4 + 1),  # segments of four lanes
        ("up", 1, 0x1800, np.where(LANES % 8 == 0, LANES, LANES - 1)),
    ],
)
def test_shuffles_stay_in_their_segments(mode, by, clamp, source):
    text = f"shfl.sync.{mode}.b32 {{0}}, {{1}}, {by}, {clamp}, -1;"
    assert computed(text, LANES * 10, result=u32).tolist() == (source * 10).tolist()


def test_a_shuffle_says_whether_its_source_was_inside():
    text = "shfl.sync.up.b32 {0}|%p0, {1}, 4, 0, -1;\n  selp.b32 {0}, 1, 0, %p0;"
    assert computed(text, LANES, result=u32).tolist() == [0] * 4 + [1] * 28


def test_a_warp_votes_and_elects_its_first_thread():
    vote = "setp.gt.u32 %p0, {1}, 29;\n  vote.sync.ballot.b32 {0}, %p0, -1;"
    assert computed(vote, LANES, result=u32).tolist() == [0xC0000000] * 32
    elect = ".reg .b32 %who;\n  elect.sync %who|%p0, -1;\n  selp.b32 {0}, 1, 0, %p0;"
    assert computed(elect, LANES, result=u32).tolist() == [1] + [0] * 31


def test_reductions_are_signed_or_not_and_take_nan_as_the_opcode_says():
    ints = np.arange(-16, 16, dtype=s32)
    for text, expected in (("add.s32", -16), ("min.s32", -16), ("max.u32", -1), ("xor.b32", 0)):
        assert computed(f"redux.sync.{text} {{0}}, {{1}}, -1;", ints, result=s32).tolist() == [expected] * 32, text
    floats = np.arange(32, dtype=f32)
    floats[3] = np.nan
    assert computed("redux.sync.max.f32 {0}, {1}, -1;", floats, result=f32).tolist() == [31] * 32
    assert np.isnan(computed("redux.sync.max.NaN.f32 {0}, {1}, -1;", floats, result=f32)).all()


def test_an_exchange_of_a_part_of_a_warp_is_refused():
    with pytest.raises(Fault, match="an exchange of a part of a warp"):
        computed("shfl.sync.bfly.b32 {0}, {1}, 1, 31, 3;", LANES, result=u32)
    with pytest.raises(Fault, match="by a part of a warp"):
        text = "setp.gt.u32 %p0, {1}, 9;\n  @%p0 shfl.sync.bfly.b32 {0}, {1}, 1, 31, -1;"
        computed(text, LANES, result=u32)


def test_a_shuffle_waits_for_threads_of_its_warp_that_went_another_way():
    text = (
        "mov.b32 {0}, {1};\n setp.gt.u32 %p0, {1}, 9;\n @%p0 bra far;\n bra.uni near;\nfar:\n add.s32 {0}, {0}, 100;\n"
    )
    text += "near:\n shfl.sync.idx.b32 {0}, {0}, 20, 31, -1;"
    assert computed(text, LANES, result=u32).tolist() == [120] * 32


PRODUCT = """
  .reg .b32 %a<5>, %b<3>, %d<5>, %row, %at, %i;
  .reg .b64 %q<9>;
  // A [16, 16] to shared memory as it is, 32 bytes a row; B [8, 16] behind it: one word for each thread at a time.
  mov.b32 %i, 0;
copy:
  .reg .pred %more;
  shl.b32 %at, %i, 7;
  shl.b32 %row, %tid, 2;
  add.s32 %at, %at, %row;
  cvt.u64.u32 %q0, %at;
  add.s64 %q0, %q0, %rd_ab;
  ld.global.b32 %a0, [%q0];
  st.shared.b32 [%at], %a0;
  add.s32 %i, %i, 1;
  setp.lt.s32 %more, %i, 6;
  @%more bra copy;
  bar.sync 0;
  // Lane l reads row l % 16 of A, its left half for l < 16; rows of B, its left half for l < 8.
  and.b32 %row, %tid, 15;
  shl.b32 %row, %row, 5;
  and.b32 %at, %tid, 16;
  add.s32 %row, %row, %at;
  ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%a0, %a1, %a2, %a3}, [%row];
  and.b32 %row, %tid, 7;
  shl.b32 %row, %row, 5;
  and.b32 %at, %tid, 8;
  shl.b32 %at, %at, 1;
  add.s32 %row, %row, %at;
  ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%b0, %b1}, [%row + 512];
  mov.b32 %d0, 0f3F800000;
  mma.sync.aligned.m16n8k16.row.col.f32.TYPE.TYPE.f32 {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, {%b0, %b1},
    {%d0, %d0, %d0, %d0};
  // Thread 4 g + t holds rows g and g + 8, columns 2 t and 2 t + 1.
  shr.u32 %row, %tid, 2;
  shl.b32 %row, %row, 5;
  and.b32 %at, %tid, 3;
  shl.b32 %at, %at, 3;
  add.s32 %row, %row, %at;
  cvt.u64.u32 %q0, %row;
  add.s64 %q0, %q0, %rd_out;
  st.global.v2.b32 [%q0], {%d0, %d1};
  st.global.v2.b32 [%q0 + 256], {%d2, %d3};
"""


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_a_product_of_a_warp_is_that_of_the_matrices(name, dtype):
    values = torch.randn(24, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = np.zeros((16, 8), f32)
    ab = values.view(torch.int16).numpy().view(u16).reshape(-1)
    run_ptx(PRODUCT.replace("TYPE", name), {"ab": ab, "out": out.reshape(-1)}, shared=768)
    expected = 1 + values[:16].double() @ values[16:].double().T
    assert np.array_equal(out, expected.float().numpy())  # rounded once


TF32 = """
  .reg .b32 %a<5>, %b<3>, %d<5>;
  mov.b32 %d0, 0;
  mov.b32 %a0, {one};
  mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {{%d0, %d1, %d2, %d3}}, {{%a0, %a0, %a0, %a0}}, {{%a0, %a0}},
    {{%d0, %d0, %d0, %d0}};
  .reg .b64 %q;
  mad.lo.s64 %q, %rdtid, 4, %rd_out;
  st.global.b32 [%q], %d0;
"""


def test_tf32_does_not_look_at_the_low_bits():
    for one in (0x3F800000, 0x3F801FFF):
        out = np.zeros(32, f32)
        run_ptx(TF32.format(one=one), {"out": out})
        assert out.tolist() == [8.0] * 32


MATRICES = """
  .reg .b32 %r<4>, %m<4>, %at;
  .reg .b64 %q;
  shl.b32 %at, %tid, 4;
  and.b32 %at, %at, 112;
  mad.lo.s64 %q, %rdtid, 4, %rd_x;
  ld.global.b32 %m0, [%q];
  stmatrix.sync.aligned.m8n8.x1{trans}.shared.b16 [%at], {{%m0}};
  bar.sync 0;
  ldmatrix.sync.aligned.m8n8.x1{back}.shared.b16 {{%m1}}, [%at];
  mad.lo.s64 %q, %rdtid, 4, %rd_out;
  st.global.b32 [%q], %m1;
"""


@pytest.mark.parametrize(("trans", "back", "is_turned"), [("", "", 0), (".trans", ".trans", 0), (".trans", "", 1)])
def test_stmatrix_and_ldmatrix_turn_a_matrix_round_where_the_opcode_says(trans, back, is_turned):
    x, out = np.arange(64, dtype=u16), np.zeros(64, u16)
    run_ptx(MATRICES.format(trans=trans, back=back), {"x": x, "out": out}, shared=128)
    expected = x.reshape(8, 8).T.reshape(-1) if is_turned else x
    assert out.tolist() == expected.tolist()
