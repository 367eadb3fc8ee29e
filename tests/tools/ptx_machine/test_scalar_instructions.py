"""Instructions of one thread: each family against values worked out by hand or by another library."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tools.ptx_machine import Fault

from .snippets import bits_of_bf16, computed, run_ptx

f16, f32, f64 = np.float16, np.float32, np.float64
u16, u32, u64, s32, s64 = np.uint16, np.uint32, np.uint64, np.int32, np.int64
NAN, INF = np.nan, np.inf
TINY = f32(1e-40)  # subnormal


def same(got: np.ndarray, expected: object) -> None:
    """Bits, so that the sign of zero counts; one NaN is as good as another."""
    wanted = np.atleast_1d(np.asarray(expected, got.dtype))
    if got.dtype.kind == "f":
        assert np.array_equal(np.isnan(got), np.isnan(wanted)), (got, wanted)
        got, wanted = got[~np.isnan(got)], wanted[~np.isnan(wanted)]
    assert got.tobytes() == wanted.tobytes(), (got, wanted)


@pytest.mark.parametrize(
    ("text", "inputs", "expected"),
    [
        ("add.f32", ([1.5, INF, -0.0], [2.25, -INF, 0.0]), [3.75, NAN, 0.0]),
        ("add.ftz.f32", ([TINY], [TINY]), [0.0]),
        ("add.f32", ([TINY], [TINY]), [2 * TINY]),
        ("mul.ftz.f32", ([-1e-30], [1e-10]), [-0.0]),
        ("sub.rn.f32", ([1.0], [2.0**-25]), [1.0]),
        ("div.full.f32", ([1.0, 1.0, 0.0], [3.0, 0.0, 0.0]), [f32(1) / f32(3), INF, NAN]),
        ("max.f32", ([NAN, 1.0, 0.0, -0.0, NAN], [2.0, NAN, -0.0, 0.0, NAN]), [2.0, 1.0, 0.0, 0.0, NAN]),
        ("min.f32", ([NAN, 0.0, -0.0], [2.0, -0.0, 0.0]), [2.0, -0.0, -0.0]),
        ("max.NaN.f32", ([NAN, 1.0, 3.0], [2.0, NAN, 2.0]), [NAN, NAN, 3.0]),
        ("max.f32", ([1.0, NAN], [2.0, 1.0], [7.0, NAN]), [7.0, 1.0]),  # three sources, sm_100
        ("abs.f32", ([-0.0, -3.0],), [0.0, 3.0]),
        ("neg.f32", ([0.0, -3.0],), [-0.0, 3.0]),
        ("ex2.approx.ftz.f32", ([3.0, -INF, TINY],), [8.0, 0.0, 1.0]),
        ("lg2.approx.f32", ([8.0, 0.0, -1.0],), [3.0, -INF, NAN]),
        ("rcp.approx.f32", ([4.0, 0.0],), [0.25, INF]),
        ("sqrt.rn.f32", ([2.0, -1.0],), [np.sqrt(f32(2)), NAN]),
    ],
)
def test_fp32_arithmetic_takes_nan_zeros_and_subnormals_as_ptx_says(text, inputs, expected):
    same(computed(text, *(np.asarray(value, f32) for value in inputs), result=f32), expected)


def test_a_fused_product_and_sum_is_rounded_once():
    a, b = f32(1 + 2**-12), f32(1 - 2**-12)
    same(computed("fma.rn.f32", a, b, f32(-1), result=f32), [f32(-(2.0**-24))])
    a, b = f64(1 + 2**-30), f64(1 - 2**-30)
    same(computed("fma.rn.f64", a, b, f64(-1), result=f64), [-(2.0**-60)])
    same(computed("fma.rn.f64", [INF, 1e300], [1.0, 1e300], [0.0, 0.0], result=f64), [INF, INF])


def test_pairs_of_fp32_are_two_products():
    pairs = [np.array(values, f32).view(u64) for values in ([1.5, -2.0], [4.0, 0.5], [0.25, 3.0])]
    assert computed("fma.rn.f32x2", *pairs, result=u64).view(f32).tolist() == [6.25, 2.0]
    assert computed("add.rn.f32x2", *pairs[:2], result=u64).view(f32).tolist() == [5.5, -1.5]


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_16_bit_floats_are_rounded_once_in_each_half(dtype, torch_dtype):
    values = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).to(torch_dtype)
    a, b = (row.view(torch.int16).numpy().view(u32) for row in values)
    for name, expected in (("add", values[0] + values[1]), ("mul", values[0] * values[1])):
        got = computed(f"{name}.rn.{dtype}x2", a, b, result=u32)
        assert got.tobytes() == expected.view(torch.int16).numpy().tobytes()
    got = computed(f"max.NaN.{dtype}x2", a, b, result=u32)
    assert got.tobytes() == torch.maximum(values[0], values[1]).view(torch.int16).numpy().tobytes()


def test_an_fp32_sum_takes_a_half_as_it_is():
    same(computed("add.rn.f32.f16", f16(1.5), f32(2.0**-20), result=f32), [f32(1.5 + 2.0**-20)])
    same(computed("fma.rn.f32.bf16", bits_of_bf16([3.0]), bits_of_bf16([0.5]), f32(1), result=f32), [2.5])


@pytest.mark.parametrize(
    ("text", "dtype", "inputs", "expected"),
    [
        ("div.s32", s32, ([-7, 7, -7], [2, -2, -2]), [-3, -3, 3]),
        ("rem.s32", s32, ([-7, 7], [2, -2]), [-1, 1]),
        ("div.u32", u32, ([2**32 - 7], [2]), [2**31 - 4]),
        ("div.u32", u32, ([5], [0]), [2**32 - 1]),
        ("max.s32", s32, ([-1], [1]), [1]),
        ("max.u32", u32, ([2**32 - 1], [1]), [2**32 - 1]),
        ("add.s32", s32, ([2**31 - 1], [1]), [-(2**31)]),
        ("mul.hi.s32", s32, ([-(2**31), -1], [2, 1]), [-1, -1]),
        ("mul.hi.u32", u32, ([2**31], [6]), [3]),
        ("mul.hi.u64", u64, ([2**63 + 5], [6]), [3]),
        ("mul.hi.s64", s64, ([-(2**63), -3], [2, 5]), [-1, -1]),
        ("mul.lo.s32", s32, ([65537], [65537]), [131073]),
        ("mad.lo.s32", s32, ([-3], [4], [5]), [-7]),
        ("abs.s32", s32, ([-5],), [5]),
        ("and.b32", u32, ([0b1100], [0b1010]), [0b1000]),
        ("xor.b64", u64, ([2**63 + 1], [1]), [2**63]),
        ("not.b16", u16, ([1],), [65534]),
        ("prmt.b32", u32, ([0x33221100], [0x77665584], [0x4C10]), [0x84FF1100]),
        ("bfi.b32", u32, ([0xFF], [0], [8], [4]), [0xF00]),
        ("shf.l.wrap.b32", u32, ([0x80000001], [0x2], [33]), [5]),
    ],
)
def test_integers_and_bits_are_signed_or_not_as_the_opcode_says(text, dtype, inputs, expected):
    same(computed(text, *(np.asarray(value, dtype) for value in inputs), result=dtype), expected)


def test_wide_products_extend_before_they_multiply():
    same(computed("mul.wide.s32", s32(-2), s32(2**31 - 1), result=s64), [-2 * (2**31 - 1)])
    same(computed("mul.wide.u32", u32(2**32 - 1), u32(2), result=u64), [2**33 - 2])
    same(computed("mad.wide.s32", s32(-2), s32(3), s64(2**40), result=s64), [2**40 - 6])
    same(computed("mul.wide.u16", u16(65535), u16(2), result=u32), [131070])


def test_shifts_by_the_width_and_more_leave_nothing_or_the_sign():
    counts = np.array([0, 1, 31, 32, 200], u32)
    same(computed("shl.b32", u32(3), counts, result=u32), [3, 6, 2**31, 0, 0])
    same(computed("shr.u32", u32(2**31), counts, result=u32), [2**31, 2**30, 1, 0, 0])
    same(computed("shr.s32", s32(-(2**31)), counts, result=s32), [-(2**31), -(2**30), -1, -1, -1])
    same(computed("shr.b64 {0}, {1}, 40;", u64(2**41), result=u64), [2])


def test_bit_fields_are_extended_by_their_upper_bit():
    position, length = np.array([4, 4, 28, 0, 40], u32), np.array([4, 0, 8, 32, 3], u32)
    value = 0x900000F5
    same(computed("bfe.u32", u32(value), position, length, result=u32), [0xF, 0, 9, value, 0])
    same(computed("bfe.s32", u32(value), position, length, result=s32), [-1, 0, -7, value - 2**32, -1])
    same(computed("popc.b32", u32(0xF0F0), result=u32), [8])
    same(computed("clz.b64", u64([0, 1, 2**63]), result=u32), [64, 63, 0])


@pytest.mark.parametrize("table", [0x80, 0xFE, 0x96, 0xE8, 0xD8, 0x01])
def test_lop3_looks_each_bit_up(table):
    a, b, c = (u32(0xF0F0F0F0), u32(0xCCCCCCCC), u32(0xAAAAAAAA))  # all eight triples of bits, in order
    expected = int(np.packbits(np.unpackbits(np.array([table], np.uint8)))[0]) * 0x01010101
    same(computed(f"lop3.b32 {{0}}, {{1}}, {{2}}, {{3}}, {table};", a, b, c, result=u32), [expected])


@pytest.mark.parametrize(
    ("compare", "of_two_numbers", "with_nan"),
    [
        ("eq", 0, 0),
        ("ne", 1, 0),
        ("neu", 1, 1),
        ("lt", 1, 0),
        ("ltu", 1, 1),
        ("geu", 0, 1),
        ("equ", 0, 1),
        ("nan", 0, 1),
        ("num", 1, 0),
    ],
)
@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "bf16"])
def test_comparisons_with_nan_are_false_unless_unordered(dtype, compare, of_two_numbers, with_nan):
    a, b = np.array([1.0, NAN]), np.array([2.0, 2.0])
    kind = {"f32": f32, "f64": f64, "f16": f16}.get(dtype)
    a, b = (bits_of_bf16(a), bits_of_bf16(b)) if kind is None else (a.astype(kind), b.astype(kind))
    text = f"setp.{compare}.{dtype} %p0, {{1}}, {{2}};\n  selp.b32 {{0}}, 1, 0, %p0;"
    same(computed(text, a, b, result=u32), [of_two_numbers, with_nan])


def test_comparisons_of_integers_look_at_the_sign_only_where_there_is_one():
    text = "setp.lt.{} %p0, {{1}}, {{2}};\n  selp.b32 {{0}}, 1, 0, %p0;"
    for type, expected in (("s32", 1), ("u32", 0)):
        same(computed(text.format(type), s32(-1), s32(1), result=u32), [expected])
    both = "setp.gt.s32 %p0|%p1, {1}, 0;\n  and.pred %p1, %p1, !%p0;\n  selp.b32 {0}, 1, 0, %p1;"
    with pytest.raises(Fault, match="operand not known"):  # a negated operand is no operand of `and`
        computed(both, s32(-1), result=u32)
    same(computed("setp.gt.s32 %p0|%p1, {1}, 0;\n  selp.b32 {0}, 1, 0, %p1;", s32([-1, 1]), result=u32), [1, 0])
    combined = "setp.gt.s32 %p1, {1}, 0;\n  setp.lt.and.s32 %p0, {1}, 5, !%p1;\n  selp.b32 {0}, 1, 0, %p0;"
    same(computed(combined, s32([-1, 1, 9]), result=u32), [1, 0, 0])


@pytest.mark.parametrize(
    ("text", "value", "result", "expected"),
    [
        ("cvt.s64.s32", s32([-1]), s64, [-1]),
        ("cvt.u64.u32", u32([2**32 - 1]), u64, [2**32 - 1]),
        ("cvt.u32.u64", u64([2**40 + 7]), u32, [7]),
        ("cvt.rn.f32.s32", s32([-3, 2**24 + 1]), f32, [-3, 2**24]),
        ("cvt.rn.f32.u32", u32([2**32 - 1]), f32, [2.0**32]),
        ("cvt.rzi.s32.f32", f32([-1.7, 3e9, NAN, -INF]), s32, [-1, 2**31 - 1, 0, -(2**31)]),
        ("cvt.rni.s32.f32", f32([0.5, 1.5, -2.5]), s32, [0, 2, -2]),
        ("cvt.rzi.u32.f32", f32([-1.7, 3e9]), u32, [0, 3_000_000_000]),
        ("cvt.rmi.f32.f32", f32([-1.2, 1.7]), f32, [-2, 1]),
        ("cvt.rpi.f64.f64", f64([1.2]), f64, [2]),
        ("cvt.rn.f32.f64", f64([1 + 2**-24, 1e300]), f32, [1, INF]),
        ("cvt.f64.f32", f32([0.1]), f64, [float(f32(0.1))]),
        ("cvt.rn.f16.f32", f32([65520.0, 1 + 2**-11, 1 + 3 * 2**-11]), f16, [INF, 1, 1 + 2**-9]),
        ("cvt.f32.f16", f16([0.1]), f32, [float(f16(0.1))]),
        ("cvt.rna.tf32.f32", f32([1 + 2**-11, INF]), f32, [1 + 2**-10, INF]),
    ],
)
def test_conversions_round_saturate_and_extend(text, value, result, expected):
    same(computed(text, value, result=result), expected)


def test_bf16_is_rounded_to_nearest_even_as_pytorch_does():
    draw = np.random.default_rng(0).integers(0, 2**32, 30, dtype=u32).view(f32)
    values = np.concatenate([draw[np.isfinite(draw)][:29], f32([1 + 2**-8, 1 + 3 * 2**-8, INF])])[:32]
    same(computed("cvt.rn.bf16.f32", values, result=u16), bits_of_bf16(values))
    same(computed("cvt.rn.bf16.f32", f32([NAN]), result=u16), [0x7FFF])
    pairs = computed("cvt.rn.bf16x2.f32", f32([1.0]), f32([2.0]), result=u32)  # the first source is the upper half
    same(pairs.view(u16), bits_of_bf16([2.0, 1.0]))
    # From fp64 in one step: rounding to fp32 first would round a tie up.
    same(computed("cvt.rn.bf16.f64", f64([1 + 2**-8 - 2**-40]), result=u16), bits_of_bf16([1.0]))


def test_moves_pack_unpack_and_read_special_registers():
    unpack = ".reg .b16 %low, %high;\n  mov.b32 {%low, %high}, {1};\n  mov.b32 {0}, {%high, %low};"
    same(computed(unpack, u32(0x12345678), result=u32), [0x56781234])
    same(computed("mov.u32 {0}, %laneid;", u32(np.arange(32)), result=u32), np.arange(32))
    same(computed("mov.b32 {0}, 0f3F800000;", u32(0), result=f32), [1.0])
    same(computed("mov.b64 {0}, 0dBFF0000000000000;", u32(0), result=f64), [-1.0])
    same(computed("mov.b32 {0}, -1;", u32(0), result=s32), [-1])


def test_names_in_the_braces_of_inline_assembly_are_their_own():
    text = "mov.b32 {0}, 1;\n  {\n  .reg .b32 %result;\n  .reg .pred p;\n  mov.b32 %result, 7;\n"
    text += "  setp.eq.s32 p, %result, 7;\n"
    text += "  @!p bra again;\n  bra done;\nagain:\n  mov.b32 {0}, 3;\ndone:\n  }\n  {\n  .reg .b32 again;\n  }\n"
    same(computed(text + "  add.s32 {0}, {0}, 1;", u32(0), result=u32), [2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("add.sat.f32 {0}, {1}, {1};", "instruction not known: add.sat.f32"),
        ("add.f32 {0}, {1}, {1}, {1};", "add.f32: expected 3 operands, got 4"),
        ("redux.sync.max.abs.f32 {0}, {1}, -1;", "instruction not known"),
        ("shr.f32 {0}, {1}, 1;", "instruction not known"),
        ("mov.b32 {0}, %clock;", "operand not known: %clock"),
        ("mov.b64 {0}, 1;", "is b32 and written as b64"),
        (".local .b8 stack[8];", "declaration not known"),
        ("bra nowhere;", "no such label"),
        ("bar.sync 1;", "barrier not known"),
    ],
)
def test_what_is_not_known_is_refused_by_name(text, message):
    with pytest.raises(Fault, match=message):
        computed(text, f32(1), result=f32)


def test_what_nobody_wrote_is_nan():
    same(computed("add.f32 {0}, {0}, {1};", f32(1), result=f32), [NAN])


def test_a_fault_names_the_kernel_the_line_and_the_instruction():
    with pytest.raises(Fault, match=r"snippet, line 12 of the source, `ld.global.b32 %r, \[%rd_x \+ 4096\]`.*of x"):
        run_ptx("  .reg .b32 %r;\n  .loc 1 12 3\n  ld.global.b32 %r, [%rd_x + 4096];", {"x": np.zeros(32, u32)})
