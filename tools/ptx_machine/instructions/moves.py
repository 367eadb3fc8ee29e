"""Moves between registers, packing and unpacking, kernel parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..core.elementwise import elementwise
from ..core.operands import Operands, address_of, vector
from ..core.parse import Instruction
from ..core.table import Step, instruction
from ..core.values import UNSIGNED, WIDTH, Array, Mask

if TYPE_CHECKING:
    from ..core.programs import Programs


@instruction("mov.{b,u,s}{16,32,64} mov.f{32,64} mov.pred", 2)
def _move(operands: Operands, x: Instruction) -> Step:
    if x.operands[0].startswith("{"):
        return _unpack(operands, x)
    if x.operands[1].startswith("{"):
        return _pack(operands, x)
    return elementwise(operands, x, lambda a: a, [x.type], x.type)


def _unpack(operands: Operands, x: Instruction) -> Step:
    """The first element of the vector is the lowest."""
    parts = vector(x.operands[0])
    width = WIDTH[x.type] // len(parts)
    read, write = operands.read(x.operands[1], f"u{WIDTH[x.type]}"), operands.writes(parts, f"u{width}")
    shifts = [UNSIGNED[WIDTH[x.type]].type(i * width) for i in range(len(parts))]

    def step(programs: Programs, mask: Mask) -> None:
        whole = read(programs.registers)
        write(programs, [(whole >> shift).astype(UNSIGNED[width]) for shift in shifts], mask)

    return step


def _pack(operands: Operands, x: Instruction) -> Step:
    parts = vector(x.operands[1])
    wide, width = UNSIGNED[WIDTH[x.type]], WIDTH[x.type] // len(parts)
    reads, write = operands.reads(parts, f"u{width}"), operands.write(x.operands[0], f"u{WIDTH[x.type]}")

    def step(programs: Programs, mask: Mask) -> None:
        whole: Array = np.zeros(1, wide)
        for i, value in enumerate(reads(programs.registers)):
            whole = whole | (value.astype(wide) << wide.type(i * width))
        write(programs, whole, mask)

    return step


@instruction("cvta{,.to}.global.u64", 2)
def _address(operands: Operands, x: Instruction) -> Step:
    """Global and generic addresses are the same here."""
    return elementwise(operands, x, lambda a: a, ["u64"], "u64")


@instruction("ld.param{,.v2,.v4}.{b,u,s}{8,16,32,64} ld.param.f{32,64}", 2)
def _parameter(operands: Operands, x: Instruction) -> Step:
    name, offset = address_of(x.operands[1])
    parts, width = vector(x.operands[0]), WIDTH[x.type]
    write = operands.writes(parts, x.type if x.type[0] == "s" else f"u{width}")
    begins = [offset + i * width // 8 for i in range(len(parts))]

    def step(programs: Programs, mask: Mask) -> None:
        given = programs.launch.parameters[name]
        values = [np.frombuffer(given[begin : begin + width // 8], UNSIGNED[width]) for begin in begins]
        write(programs, values, mask)

    return step
