"""Exchanges within a warp. All of its threads must be there, as Triton's code has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..core.operands import Operands
from ..core.parse import Instruction
from ..core.table import Step, instruction
from ..core.values import DTYPE, Array, Fault, Mask

if TYPE_CHECKING:
    from ..core.programs import Programs

_REDUCE: dict[str, np.ufunc] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
_IGNORING_NAN: dict[str, np.ufunc] = {"min": np.fmin, "max": np.fmax}
ALL = np.uint32(0xFFFFFFFF)


def _require_all(membership: Array) -> None:
    if (membership != ALL).any():
        raise Fault("an exchange of a part of a warp")


@instruction("shfl.sync.{up,down,bfly,idx}.b32", 5, together=32)
def _shuffle(operands: Operands, x: Instruction) -> Step:
    mode = x.parts[2]
    value, by, clamp, members = (operands.read(text, "u32") for text in x.operands[1:])
    texts = x.operands[0].split("|")
    write = operands.write(texts[0], "u32")
    write_is_inside = operands.write(texts[1], "pred") if len(texts) > 1 else None

    def step(programs: Programs, mask: Mask) -> None:
        registers = programs.registers
        programs.whole(mask, 32, x.opcode)
        _require_all(members(registers))
        source, is_inside = _source(programs, mode, by(registers), clamp(registers))
        write(programs, programs.full(value(registers))[source], mask)
        if write_is_inside is not None:
            write_is_inside(programs, is_inside, mask)

    return step


def _source(programs: Programs, mode: str, by: Array, clamp: Array) -> tuple[Array, Array]:
    """The thread that each gets its value from, and whether that is within its segment; its own where it is not."""
    lane, by, clamp = programs.lane, by.astype(np.int64) & 31, clamp.astype(np.int64)
    segment, limit = clamp >> 8 & 31, clamp & 31
    first = lane & segment
    last = first | (limit & ~segment)
    wanted = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": first | (by & ~segment)}[mode]
    is_inside = wanted >= last if mode == "up" else wanted <= last
    return programs.everyone - lane + np.where(is_inside, wanted, lane), is_inside


@instruction("vote.sync.{any,all,ballot}.{pred,b32}", 3, together=32)
def _vote(operands: Operands, x: Instruction) -> Step:
    mode = x.parts[2]
    holds, members = operands.predicate(x.operands[1]), operands.read(x.operands[2], "u32")
    write = operands.write(x.operands[0], "u32" if mode == "ballot" else "pred")

    def step(programs: Programs, mask: Mask) -> None:
        programs.whole(mask, 32, x.opcode)
        _require_all(members(programs.registers))
        votes = programs.full(holds(programs.registers)).reshape(-1, 32)
        if mode == "ballot":
            result = (votes.astype(np.uint32) << np.arange(32, dtype=np.uint32)).sum(1, dtype=np.uint32)
        else:
            result = votes.any(1) if mode == "any" else votes.all(1)
        write(programs, np.repeat(result, 32), mask)

    return step


@instruction(
    "redux.sync.{add,min,max}.{s,u}32 redux.sync.{and,or,xor}.b32 redux.sync.{min,max}{,.NaN}.f32", 3, together=32
)
def _reduce(operands: Operands, x: Instruction) -> Step:
    """Of floats without .NaN: NaN only where all are."""
    name = x.parts[2]
    ignores_nan = x.type == "f32" and not x.has("NaN")
    function = _IGNORING_NAN[name] if ignores_nan else _REDUCE[name]
    value, members = operands.read(x.operands[1], x.type), operands.read(x.operands[2], "u32")
    write = operands.write(x.operands[0], x.type)

    def step(programs: Programs, mask: Mask) -> None:
        programs.whole(mask, 32, x.opcode)
        _require_all(members(programs.registers))
        values = programs.full(value(programs.registers)).reshape(-1, 32)
        write(programs, np.repeat(function.reduce(values, axis=1, dtype=DTYPE[x.type]), 32), mask)

    return step


@instruction("elect.sync", 2, together=32)
def _elect(operands: Operands, x: Instruction) -> Step:
    """The first thread of each warp."""
    number, is_chosen = x.operands[0].split("|")
    write_number, write_is_chosen = operands.write(number, "u32"), operands.write(is_chosen, "pred")

    def step(programs: Programs, mask: Mask) -> None:
        programs.whole(mask, 32, x.opcode)
        write_number(programs, np.zeros(1, np.uint32), mask)
        write_is_chosen(programs, programs.lane == 0, mask)

    return step


@instruction("bar.warp.sync", 1, together=32)
def _wait_for_warp(operands: Operands, x: Instruction) -> Step:
    return lambda programs, mask: None
