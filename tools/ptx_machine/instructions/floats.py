"""Arithmetic of floats: fp32 and fp64, 16-bit ones and pairs of them, pairs of fp32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..core import arithmetic
from ..core.elementwise import Function, elementwise
from ..core.operands import Operands
from ..core.parse import Instruction
from ..core.table import Step, instruction
from ..core.values import Array, flushed, from_16_bits, halves, paired, to_16_bits

_TWO: dict[str, Function] = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
_ONE: dict[str, Function] = {
    "abs": np.abs,
    "neg": np.negative,
    "sqrt": np.sqrt,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "rcp": lambda a: a.dtype.type(1) / a,
    "rsqrt": lambda a: a.dtype.type(1) / np.sqrt(a),
    "ex2": lambda a: np.exp2(a.astype(np.float64)).astype(a.dtype),
    "lg2": lambda a: np.log2(a.astype(np.float64)).astype(a.dtype),
}
_EXTREME: dict[str, Function] = {
    "max": arithmetic.maximum,
    "min": arithmetic.minimum,
    "max.NaN": arithmetic.maximum_or_nan,
    "min.NaN": arithmetic.minimum_or_nan,
}


def _compute(operands: Operands, x: Instruction, function: Function) -> Step:
    """All operands and the result have the type of the opcode; .ftz flushes all of them."""
    types = [x.type] * (len(x.operands) - 1)
    if not x.has("ftz") or x.type != "f32":
        return elementwise(operands, x, function, types, x.type)
    return elementwise(operands, x, lambda *given: flushed(function(*map(flushed, given))), types, x.type)


@instruction("{add,sub,mul}{,.rn}{,.ftz}.f32 {add,sub,mul}{,.rn}.f64 div.{full,rn,approx}{,.ftz}.f32 div.rn.f64", 3)
def _of_two(operands: Operands, x: Instruction) -> Step:
    return _compute(operands, x, _TWO[x.parts[0]])


@instruction("fma.rn{,.ftz}.f32 fma.rn.f64", 4)
def _fused(operands: Operands, x: Instruction) -> Step:
    return _compute(operands, x, arithmetic.fused_f32 if x.type == "f32" else arithmetic.fused_f64)


def _extreme_of(x: Instruction) -> Function:
    return _EXTREME[x.parts[0] + (".NaN" if x.has("NaN") else "")]


@instruction("{max,min}{,.ftz}{,.NaN}.f32", 3, 4)
def _extreme_of_two_or_three(operands: Operands, x: Instruction) -> Step:
    extreme = _extreme_of(x)
    if len(x.operands) == 3:
        return _compute(operands, x, extreme)
    return _compute(operands, x, lambda a, b, c: extreme(extreme(a, b), c))


@instruction("{max,min}.f64", 3)
def _extreme_of_f64(operands: Operands, x: Instruction) -> Step:
    return _compute(operands, x, _extreme_of(x))


@instruction("{abs,neg}{,.ftz}.f32 {abs,neg}.f64 {sqrt,rcp}.rn{,.ftz}.f32 {sqrt,rcp}.rn.f64 rcp.approx.ftz.f64", 2)
@instruction("{sqrt,rsqrt,rcp,ex2,lg2,sin,cos}.approx{,.ftz}.f32 tanh.approx.f32 rsqrt.approx.f64", 2)
def _of_one(operands: Operands, x: Instruction) -> Step:
    return _compute(operands, x, _ONE[x.parts[0]])


@instruction("{add,sub,mul}{,.rn}.{f16,bf16,f16x2,bf16x2} {max,min}{,.NaN}.{f16,bf16,f16x2,bf16x2}", 3)
@instruction("fma.rn.{f16,bf16,f16x2,bf16x2}", 4)
@instruction("{neg,abs}.{f16,bf16,f16x2,bf16x2}", 2)
def _of_16_bits(operands: Operands, x: Instruction) -> Step:
    """Computed in fp32 and rounded once; pairs element by element."""
    name, dtype = x.parts[0], x.type.removesuffix("x2")
    known = {**_TWO, **_ONE, "fma": arithmetic.fused_f32}
    function = _extreme_of(x) if name in ("max", "min") else known[name]

    def single(*given: Array) -> Array:
        return to_16_bits(function(*[from_16_bits(value, dtype) for value in given]), dtype)

    count = len(x.operands) - 1
    if not x.type.endswith("x2"):
        return elementwise(operands, x, single, ["u16"] * count, "u16")

    def of_pairs(*given: Array) -> Array:
        low, high = zip(*map(halves, given), strict=True)
        return paired(single(*low), single(*high))

    return elementwise(operands, x, of_pairs, ["u32"] * count, "u32")


@instruction("{add,sub}.rn.f32.{f16,bf16} {add,sub}.f32.{f16,bf16}", 3)
def _mixed_sum(operands: Operands, x: Instruction) -> Step:
    """sm_100: a 16-bit float and an fp32."""
    dtype, function = x.type, _TWO[x.parts[0]]
    return elementwise(operands, x, lambda a, b: function(from_16_bits(a, dtype), b), ["u16", "f32"], "f32")


@instruction("fma.rn.f32.{f16,bf16}", 4)
def _mixed_fused(operands: Operands, x: Instruction) -> Step:
    dtype = x.type

    def fused(a: Array, b: Array, c: Array) -> Array:
        return arithmetic.fused_f32(from_16_bits(a, dtype), from_16_bits(b, dtype), c)

    return elementwise(operands, x, fused, ["u16", "u16", "f32"], "f32")


def _of_f32_pairs(operands: Operands, x: Instruction, function: Callable[..., Array]) -> Step:
    def of_pairs(*given: Array) -> Array:
        parts = [np.ascontiguousarray(value).view(np.float32).reshape(-1, 2) for value in given]
        columns = [function(*[part[:, i] for part in parts]) for i in (0, 1)]
        return np.ascontiguousarray(np.stack(columns, 1)).view(np.uint64).reshape(-1)

    return elementwise(operands, x, of_pairs, ["u64"] * (len(x.operands) - 1), "u64")


@instruction("{add,sub,mul}{,.rn}.f32x2", 3)
def _of_two_pairs(operands: Operands, x: Instruction) -> Step:
    return _of_f32_pairs(operands, x, _TWO[x.parts[0]])


@instruction("fma.rn.f32x2", 4)
def _fused_pairs(operands: Operands, x: Instruction) -> Step:
    return _of_f32_pairs(operands, x, arithmetic.fused_f32)
