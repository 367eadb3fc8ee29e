"""Loads and stores of global and shared memory, atomics, cp.async."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..core.operands import Operands, vector
from ..core.parse import Instruction
from ..core.table import Step, instruction
from ..core.values import DTYPE, WIDTH, Array, Fault, Mask

if TYPE_CHECKING:
    from ..core.programs import Programs

_CACHE = "{,.ca,.cg,.cs}{,.L1::evict_first,.L1::evict_last,.L1::evict_normal,.L1::no_allocate}{,.L2::cache_hint}"
_TYPES = "{,.v2,.v4,.v8}.{b,u,s}{8,16,32,64}"
_SHARED = "{shared,shared::cta}"


def _require_hint(x: Instruction, without: int) -> None:
    """A cache policy is given where the opcode says so, and only there."""
    if len(x.operands) != without + x.has("L2::cache_hint"):
        raise Fault(f"operands of {x.text}")


@instruction(f"ld.global{{,.nc}}{_CACHE}{_TYPES} ld.{_SHARED}{_TYPES}", 2, 3)
def _load(operands: Operands, x: Instruction) -> Step:
    _require_hint(x, 2)
    is_global = x.has("global")
    address = operands.address(x.operands[1], "global" if is_global else "shared")
    parts, width = vector(x.operands[0]), WIDTH[x.type]
    write = operands.writes(parts, x.type if x.type[0] == "s" else f"u{width}")
    dtype, count = DTYPE[x.type], len(parts)

    def step(programs: Programs, mask: Mask) -> None:
        memory = programs.global_memory if is_global else programs.shared
        values = memory.load(programs, address(programs.registers), width, count, mask)
        write(programs, [value.view(dtype) for value in values], mask)

    return step


@instruction(f"st.global{_CACHE}{_TYPES} st.{_SHARED}{_TYPES}", 2, 3)
def _store(operands: Operands, x: Instruction) -> Step:
    _require_hint(x, 2)
    is_global = x.has("global")
    address = operands.address(x.operands[0], "global" if is_global else "shared")
    width = WIDTH[x.type]
    reads = operands.reads(vector(x.operands[1]), f"u{width}")

    def step(programs: Programs, mask: Mask) -> None:
        memory = programs.global_memory if is_global else programs.shared
        registers = programs.registers
        memory.store(programs, address(registers), width, reads(registers), mask)

    return step


@instruction("createpolicy.fractional.L2::evict_{first,last}.b64", 2)
def _policy(operands: Operands, x: Instruction) -> Step:
    """A hint to the cache: no value depends on it."""
    write = operands.write(x.operands[0], "u64")
    return lambda programs, mask: write(programs, np.zeros(1, np.uint64), mask)


def _combined(name: str, old: Array, value: Array, other: Array) -> Array:
    """What an atomic leaves behind; elements are arrays of one element."""
    if name == "cas":
        return np.where(old == value, other, old)
    function = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }.get(name)
    return value if function is None else function(old, value)  # exch


_ORDER = "{,.relaxed,.acquire,.release,.acq_rel}"


@instruction(f"atom.global{{,.gpu,.cta,.sys}}{_ORDER}.{{add.u32,add.s32,add.u64,add.f32,add.f64}}", 3)
@instruction(f"atom.global{{,.gpu,.cta,.sys}}{_ORDER}.{{min,max}}.{{s,u}}{{32,64}}", 3)
@instruction(f"atom.global{{,.gpu,.cta,.sys}}{_ORDER}.{{and,or,xor,exch}}.b{{32,64}}", 3)
@instruction(f"atom.global{{,.gpu,.cta,.sys}}{_ORDER}.cas.b{{32,64}}", 4)
def _atomic(operands: Operands, x: Instruction) -> Step:
    """One thread after another, in the order of their numbers; a GPU promises none."""
    name, dtype = x.parts[-2], DTYPE[x.type]
    address = operands.address(x.operands[1], "global")
    reads = operands.reads(list(x.operands[2:]), x.type)
    write = operands.write(x.operands[0], x.type)

    def step(programs: Programs, mask: Mask) -> None:
        addresses, who = programs.active(address(programs.registers), mask)
        given = [programs.full(value)[who] for value in reads(programs.registers)]
        before = np.zeros(len(who), dtype)
        for i, place in enumerate(addresses):
            cells, at = programs.global_memory.atomic(programs, place, dtype)
            before[i] = cells[at]
            one = slice(i, i + 1)
            cells[at] = _combined(name, cells[at : at + 1], given[0][one], given[-1][one])[0]
        write(programs, programs.spread(before, who, mask), mask)

    return step


@instruction("cp.async.{ca,cg}.shared{,::cta}.global{,.L2::64B,.L2::128B,.L2::256B}", 3, 4)
def _copy(operands: Operands, x: Instruction) -> Step:
    to, source = operands.address(x.operands[0], "shared"), operands.address(x.operands[1], "global")
    size = int(x.operands[2], 0)
    copied = operands.read(x.operands[3], "u32") if len(x.operands) > 3 else None

    def step(programs: Programs, mask: Mask) -> None:
        registers = programs.registers
        wanted = None if copied is None else copied(registers)
        programs.shared.copy_later(programs, to(registers), source(registers), size, wanted, mask)

    return step


@instruction("cp.async.commit_group", 0)
def _commit(operands: Operands, x: Instruction) -> Step:
    return lambda programs, mask: programs.shared.commit(mask)


@instruction("cp.async.wait_group", 1)
def _wait(operands: Operands, x: Instruction) -> Step:
    left = int(x.operands[0], 0)
    return lambda programs, mask: programs.shared.wait(programs, left, mask)


@instruction("cp.async.wait_all", 0)
def _wait_all(operands: Operands, x: Instruction) -> Step:
    def step(programs: Programs, mask: Mask) -> None:
        programs.shared.commit(mask)
        programs.shared.wait(programs, 0, mask)

    return step
