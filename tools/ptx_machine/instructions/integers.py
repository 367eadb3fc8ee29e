"""Arithmetic of integers; signed and unsigned ones are different instructions where the result is."""

from __future__ import annotations

import numpy as np

from ..core import arithmetic
from ..core.elementwise import Function, elementwise
from ..core.operands import Operands
from ..core.parse import Instruction
from ..core.table import Step, instruction
from ..core.values import DTYPE, WIDTH, Array

_TWO: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "max": np.maximum,
    "min": np.minimum,
    "div": arithmetic.quotient,
    "rem": arithmetic.remainder,
}


@instruction("{add,sub,max,min,div,rem}.{s,u}{16,32,64}", 3)
def _of_two(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, _TWO[x.parts[0]], [x.type] * 2, x.type)


@instruction("mul.lo.{s,u}{16,32,64}", 3)
def _product(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, np.multiply, [x.type] * 2, x.type)


@instruction("mul.hi.{s,u}{32,64}", 3)
def _high_product(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, arithmetic.high_product, [x.type] * 2, x.type)


@instruction("mad.lo.{s,u}{16,32,64}", 4)
def _product_and_sum(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, lambda a, b, c: a * b + c, [x.type] * 3, x.type)


@instruction("mad.hi.{s,u}{32,64}", 4)
def _high_product_and_sum(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, lambda a, b, c: arithmetic.high_product(a, b) + c, [x.type] * 3, x.type)


def _wide(type: str) -> str:
    return f"{type[0]}{2 * WIDTH[type]}"


@instruction("mul.wide.{s,u}{16,32}", 3)
def _wide_product(operands: Operands, x: Instruction) -> Step:
    dtype = DTYPE[_wide(x.type)]
    return elementwise(operands, x, lambda a, b: a.astype(dtype) * b.astype(dtype), [x.type] * 2, _wide(x.type))


@instruction("mad.wide.{s,u}{16,32}", 4)
def _wide_product_and_sum(operands: Operands, x: Instruction) -> Step:
    wide = _wide(x.type)
    dtype = DTYPE[wide]

    def function(a: Array, b: Array, c: Array) -> Array:
        return a.astype(dtype) * b.astype(dtype) + c

    return elementwise(operands, x, function, [x.type, x.type, wide], wide)


@instruction("{abs,neg}.s{16,32,64}", 2)
def _of_one(operands: Operands, x: Instruction) -> Step:
    return elementwise(operands, x, np.abs if x.parts[0] == "abs" else np.negative, [x.type], x.type)
