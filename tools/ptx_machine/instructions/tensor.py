"""tcgen05 of sm_100: products into tensor memory, and loads and stores of it by warps."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..core.operands import Operands, address_of, vector
from ..core.parse import Instruction
from ..core.table import Step, instruction
from ..core.values import Mask
from ..memory.tensor_memory import Product

if TYPE_CHECKING:
    from ..core.operands import Read
    from ..core.programs import Programs

_COUNTS = "x{1,2,4,8,16,32,64,128}"
_SHAPES = "{32x32b,16x32bx2}"


def _tensor_address(operands: Operands, text: str) -> Read:
    name, offset = address_of(text)
    base, step = operands.read(name, "u32"), np.array([offset], np.uint32)
    return lambda registers: base(registers) + step


@instruction("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32", 2, together=32)
def _allocate(operands: Operands, x: Instruction) -> Step:
    """The address is written to shared memory."""
    address, columns = operands.address(x.operands[0], "shared"), operands.read(x.operands[1], "u32")

    def step(programs: Programs, mask: Mask) -> None:
        first = programs.everyone[np.repeat(programs.whole(mask, 32, x.opcode), 32) & (programs.lane == 0)]
        asked = programs.full(columns(programs.registers))
        found = np.zeros(programs.count, np.uint32)
        for thread in first:
            found[thread] = programs.tensor_memory.allocate(int(programs.program[thread]), int(asked[thread]))
        chosen = np.zeros(programs.count, bool)
        chosen[first] = True
        programs.shared.store(programs, address(programs.registers), 32, [found], chosen)

    return step


@instruction("tcgen05.dealloc.cta_group::1.sync.aligned.b32", 2, together=32)
@instruction("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned", 0, together=32)
@instruction("tcgen05.wait::{ld,st}.sync.aligned tcgen05.fence::{before,after}_thread_sync", 0)
def _nothing(operands: Operands, x: Instruction) -> Step:
    """Loads and stores of tensor memory are done at once here."""
    return lambda programs, mask: None


@instruction(f"tcgen05.ld.sync.aligned.{_SHAPES}.{_COUNTS}.b32", 2, 3, together=32)
def _load(operands: Operands, x: Instruction) -> Step:
    shape, parts = x.parts[4], vector(x.operands[0])
    address, write = _tensor_address(operands, x.operands[1]), operands.writes(parts, "u32")
    split = int(x.operands[2], 0) if len(x.operands) > 2 else 0

    def step(programs: Programs, mask: Mask) -> None:
        memory = programs.tensor_memory
        lane, column = memory.place(programs, address(programs.registers), shape, len(parts), split, mask)
        write(programs, [memory.cells[programs.program, lane, column + i] for i in range(len(parts))], mask)

    return step


@instruction(f"tcgen05.st.sync.aligned.{_SHAPES}.{_COUNTS}.b32", 2, 3, together=32)
def _store(operands: Operands, x: Instruction) -> Step:
    shape, parts = x.parts[4], vector(x.operands[-1])
    address, reads = _tensor_address(operands, x.operands[0]), operands.reads(parts, "u32")
    split = int(x.operands[1], 0) if len(x.operands) > 2 else 0

    def step(programs: Programs, mask: Mask) -> None:
        memory, registers = programs.tensor_memory, programs.registers
        lane, column = memory.place(programs, address(registers), shape, len(parts), split, mask)
        _, who = programs.active(programs.lane, mask)
        for i, value in enumerate(reads(registers)):
            memory.cells[programs.program[who], lane[who], column[who] + i] = programs.full(value)[who]

    return step


@instruction("tcgen05.mma.cta_group::1.kind::f16", 5)
def _multiply(operands: Operands, x: Instruction) -> Step:
    """Queued at its issue, by one thread, and done when somebody waits for what is committed after it."""
    to = _tensor_address(operands, x.operands[0])
    in_tensor_memory = x.operands[1].startswith("[")
    left = _tensor_address(operands, x.operands[1]) if in_tensor_memory else operands.read(x.operands[1], "u64")
    right, kind = operands.read(x.operands[2], "u64"), operands.read(x.operands[3], "u32")
    adds = operands.predicate(x.operands[4])

    def step(programs: Programs, mask: Mask) -> None:
        given = [read(programs.registers) for read in (to, left, right, kind, adds)]
        for thread in programs.active(programs.everyone, mask)[1]:
            d, a, b, shape, accumulates = (value[thread % len(value)].item() for value in given)
            product = Product(d, a, b, shape, accumulates, in_tensor_memory)
            programs.tensor_memory.require_written_before(programs, int(thread), product)
            program = int(programs.program[thread])
            work = partial(programs.tensor_memory.multiply, programs, program, product)
            programs.barriers.queue_product(program, work)

    return step


@instruction("tcgen05.commit.cta_group::1.mbarrier::arrive::one.{b64,shared::cluster.b64,shared::cta.b64}", 1)
def _commit(operands: Operands, x: Instruction) -> Step:
    address = operands.address(x.operands[0], "shared")

    def step(programs: Programs, mask: Mask) -> None:
        at, who = programs.active(address(programs.registers), mask)
        for thread, place in zip(who, at, strict=True):
            programs.barriers.commit_products(int(programs.program[thread]), int(place))

    return step
