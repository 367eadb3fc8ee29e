"""Comparisons, selections and conversions between formats."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..core import arithmetic
from ..core.elementwise import Function, elementwise
from ..core.operands import Operands, Read
from ..core.parse import Instruction
from ..core.programs import Programs
from ..core.table import Step, instruction
from ..core.values import DTYPE, Array, Mask, flushed, from_16_bits, paired, to_16_bits, to_bf16, to_tf32

_COMPARE: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
_COMBINE: dict[str, Function] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
_ROUNDINGS = ("rzi", "rni", "rmi", "rpi")


def _nan(a: Array, b: Array) -> Array:
    return np.isnan(a) | np.isnan(b)


def _float_comparison(name: str) -> Function:
    """Ordered ones are false where either is NaN, those with a u at the end true."""
    if name == "nan":
        return _nan
    if name == "num":
        return lambda a, b: ~_nan(a, b)
    compare = _COMPARE[name.removesuffix("u")]
    if name == "ne":
        return lambda a, b: compare(a, b) & ~_nan(a, b)
    if name.endswith("u") and name != "neu":
        return lambda a, b: compare(a, b) | _nan(a, b)
    return compare  # as numpy takes NaN


def _operand(operands: Operands, text: str, type: str, flush: bool) -> Read:
    if type in ("f16", "bf16"):
        read = operands.read(text, "u16")
        return lambda registers: from_16_bits(read(registers), type)
    read = operands.read(text, type)
    return (lambda registers: flushed(read(registers))) if flush else read


@instruction("setp.{eq,ne}{,.and,.or,.xor}.b{16,32,64}", 3, 4)
@instruction(
    "setp.{eq,ne,lt,le,gt,ge}{,.and,.or,.xor}.{s,u}{16,32,64} setp.{lo,ls,hi,hs}{,.and,.or,.xor}.u{16,32,64}", 3, 4
)
@instruction("setp.{eq,ne,lt,le,gt,ge,equ,neu,ltu,leu,gtu,geu,nan,num}{,.and,.or,.xor}{,.ftz}.{f16,bf16,f32}", 3, 4)
@instruction("setp.{eq,ne,lt,le,gt,ge,equ,neu,ltu,leu,gtu,geu,nan,num}{,.and,.or,.xor}.f64", 3, 4)
def _compare(operands: Operands, x: Instruction) -> Step:
    name, combine = x.parts[1], next((_COMBINE[part] for part in x.parts if part in _COMBINE), None)
    if len(x.operands) != (3 if combine is None else 4):
        raise ValueError("a comparison is combined with a fourth operand, and only then has one")
    compare = _float_comparison(name) if "f" in x.type else _COMPARE[name]
    first, second = (_operand(operands, text, x.type, x.has("ftz")) for text in x.operands[1:3])
    other = operands.predicate(x.operands[3]) if combine is not None else None
    texts = x.operands[0].split("|")
    write = operands.write(texts[0], "pred")
    write_opposite = operands.write(texts[1], "pred") if len(texts) > 1 else None

    def step(programs: Programs, mask: Mask) -> None:
        registers = programs.registers
        holds = compare(first(registers), second(registers))
        opposite = ~holds
        if combine is not None and other is not None:
            given = other(registers)
            holds, opposite = combine(holds, given), combine(opposite, given)
        write(programs, holds, mask)
        if write_opposite is not None:
            write_opposite(programs, opposite, mask)

    return step


@instruction("selp.{b,s,u}{16,32,64} selp.f{32,64}", 4)
def _select(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, lambda a, b, p: np.asarray(np.where(p, a, b)), [x.type, x.type, "pred"], x.type)


@instruction("cvt.{s,u}{8,16,32,64}.{s,u}{8,16,32,64} cvt.rn.{f16,f32,f64}.{s,u}{8,16,32,64}", 2)
def _of_integers(operands: Operands, x: Instruction) -> Step:
    to, source = x.types
    return elementwise(operands, x, lambda a: a.astype(DTYPE[to]), [source], to)


@instruction("cvt.{rzi,rni,rmi,rpi}{,.ftz}.{s,u}{16,32,64}.f32 cvt.{rzi,rni,rmi,rpi}.{s,u}{16,32,64}.{f16,f64}", 2)
def _to_integers(operands: Operands, x: Instruction) -> Step:
    to, source = x.types
    flush: Callable[[Array], Array] = flushed if x.has("ftz") else lambda a: a
    return elementwise(operands, x, lambda a: arithmetic.to_integer(flush(a), DTYPE[to], x.parts[1]), [source], to)


@instruction("cvt.{rzi,rni,rmi,rpi}{,.ftz}.f32.f32 cvt.{rzi,rni,rmi,rpi}.f64.f64", 2)
def _to_whole_numbers(operands: Operands, x: Instruction) -> Step:
    flush: Callable[[Array], Array] = flushed if x.has("ftz") else lambda a: a
    return elementwise(operands, x, lambda a: flush(arithmetic.rounded(flush(a), x.parts[1])), [x.type], x.type)


@instruction(
    "cvt{,.ftz}.f64.f32 cvt.rn{,.ftz}.f32.f64 cvt{,.ftz}.f32.f16 cvt.rn{,.ftz}.f16.f32 cvt.f64.f16 cvt.rn.f16.f64", 2
)
def _between_floats(operands: Operands, x: Instruction) -> Step:
    to, source = x.types

    def convert(a: Array) -> Array:
        result = (flushed(a) if x.has("ftz") and source == "f32" else a).astype(DTYPE[to])
        return flushed(result) if x.has("ftz") and to == "f32" else result

    return elementwise(operands, x, convert, [source], to)


@instruction("cvt.{f32,f64}.bf16", 2)
def _of_bf16(operands: Operands, x: Instruction) -> Step:
    to = x.types[0]
    return elementwise(operands, x, lambda a: from_16_bits(a, "bf16").astype(DTYPE[to]), ["bf16"], to)


@instruction("cvt.rn.bf16.{f32,f64}", 2)
def _to_bf16(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, lambda a: to_bf16(_odd_f32(a)), [x.type], "bf16")


def _odd_f32(values: Array) -> Array:
    """fp64 as fp32 rounded to odd, so that rounding once more is as if there had been one rounding; fp32 as it is."""
    if values.dtype == np.float32:
        return values
    nearest = values.astype(np.float32)
    beyond = np.abs(nearest.astype(np.float64)) > np.abs(values)
    towards_zero = np.where(beyond, np.nextafter(nearest, np.float32(0)), nearest)
    is_inexact = np.isfinite(nearest) & (towards_zero.astype(np.float64) != values)
    return np.where(is_inexact, (towards_zero.view(np.uint32) | np.uint32(1)).view(np.float32), nearest)


@instruction("cvt.rn.{f16x2,bf16x2}.f32", 3)
def _to_pairs(operands: Operands, x: Instruction) -> Step:
    """The first source becomes the upper half."""
    dtype = x.types[0].removesuffix("x2")
    return elementwise(
        operands, x, lambda high, low: paired(to_16_bits(low, dtype), to_16_bits(high, dtype)), ["f32", "f32"], "u32"
    )


@instruction("cvt.rna.tf32.f32", 2)
def _to_tf32(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, to_tf32, ["f32"], "u32")
