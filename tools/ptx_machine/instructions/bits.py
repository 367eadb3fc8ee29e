"""Logic, shifts, bit fields and bytes; the types here say no more than the width, but for shr and bfe."""

from __future__ import annotations

import numpy as np

from ..core import arithmetic
from ..core.elementwise import Function, elementwise
from ..core.operands import Operands
from ..core.parse import Instruction
from ..core.table import Step, instruction
from ..core.values import Array

_LOGIC: dict[str, Function] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@instruction("{and,or,xor}.{pred,b16,b32,b64}", 3)
def _logic(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, _LOGIC[x.parts[0]], [x.type] * 2, x.type)


@instruction("not.{pred,b16,b32,b64}", 2)
def _not(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, np.invert, [x.type], x.type)


@instruction("shl.b{16,32,64}", 3)
def _shift_left(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, arithmetic.shifted_left, [x.type, "u32"], x.type)


@instruction("shr.{b,u,s}{16,32,64}", 3)
def _shift_right(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, arithmetic.shifted_right, [x.type, "u32"], x.type)


@instruction("shf.{l,r}.wrap.b32", 4)
def _funnel(operands: Operands, x: Instruction) -> Step:
    left = x.has("l")
    return elementwise(operands, x, lambda a, b, c: arithmetic.funnel(a, b, c, left=left), ["u32"] * 3, "u32")


@instruction("bfe.{u,s}{32,64}", 4)
def _bit_field(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, arithmetic.bit_field, [x.type, "u32", "u32"], x.type)


@instruction("bfi.b{32,64}", 5)
def _with_bit_field(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, arithmetic.with_bit_field, [x.type, x.type, "u32", "u32"], x.type)


@instruction("popc.b{32,64}", 2)
def _ones(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, lambda a: np.bitwise_count(a).astype(np.uint32), [x.type], "u32")


@instruction("clz.b{32,64}", 2)
def _leading_zeros(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, arithmetic.leading_zeros, [x.type], "u32")


@instruction("prmt.b32", 4)
def _permuted_bytes(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, arithmetic.permuted_bytes, ["u32"] * 3, "u32")


@instruction("lop3.b32", 5)
def _logic_of_three(operands: Operands, x: Instruction) -> Step:
    table = int(x.operands[4], 0)

    def function(a: Array, b: Array, c: Array, _: Array) -> Array:
        return arithmetic.logic_of_three(a, b, c, table)

    return elementwise(operands, x, function, ["u32"] * 4, "u32")
