"""wgmma of sm_90: products of matrices in shared memory by a warpgroup, the left one perhaps in registers.

`memory.warpgroup` says when they are done.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..core.operands import Operands, vector
from ..core.parse import Instruction
from ..core.table import Step, instruction
from ..core.values import Array, Fault, Mask, from_16_bits
from ..memory.descriptors import Descriptor
from ..memory.warpgroup import THREADS

if TYPE_CHECKING:
    from ..core.programs import Programs

_ROWS, _DEPTH = 64, 16
_THREAD = np.arange(THREADS)
_GROUP, _IN_GROUP, _WARP = _THREAD % 32 // 4, _THREAD % 4, _THREAD // 32

Operand = Callable[["Programs", Array], Array]
"""fp64 [groups, rows, depth], of the warpgroups that compute (bool each)."""


def _accumulator_places(registers: int) -> tuple[Array, Array]:
    """Row and column [registers, threads] of each sum of a warpgroup."""
    i = np.arange(registers)[:, None]
    return 16 * _WARP + _GROUP + 8 * (i // 2 % 2), 8 * (i // 4) + _IN_GROUP * 2 + i % 2


def _in_registers(values: list[Array], dtype: str) -> Operand:
    """The left matrix: as mma.sync has it, 16 rows for each warp."""
    stacked = np.ascontiguousarray(np.stack(values))

    def operand(programs: Programs, there: Array) -> Array:
        elements = from_16_bits(stacked.view(np.uint16), dtype).reshape(len(values), -1, THREADS, 2)
        matrix = np.zeros((elements.shape[1], _ROWS, _DEPTH))
        for r in range(len(values)):
            for e in range(2):
                row, column = 16 * _WARP + _GROUP + 8 * (r % 2), _IN_GROUP * 2 + e + 8 * (r // 2)
                matrix[:, row, column] = elements[r, :, :, e]
        return matrix

    return operand


def _in_shared_memory(
    programs: Programs, bits: Array, there: Array, rows: int, dtype: str, transposed: bool
) -> Operand:
    """A matrix that descriptors (uint64, by thread) point to; its threads have the same."""
    groups = programs.full(bits).reshape(-1, THREADS)
    if (groups[there] != groups[there][:, :1]).any():
        raise Fault("threads of a warpgroup with different descriptors")
    per_program = programs.threads // THREADS
    places = {}
    for number in np.unique(groups[there][:, 0]):
        addresses = Descriptor.of_wgmma(int(number)).addresses(rows, _DEPTH, transposed=transposed)
        users = np.flatnonzero(there & (groups[:, 0] == number))
        places[number] = addresses
        for group in users:
            cells = (addresses.reshape(-1) + group // per_program * programs.shared.stride) // programs.shared.grain
            stamps = np.full(len(cells), programs.stamps[group * THREADS], np.int32)
            programs.shared.races.require_written_before_warps(cells, stamps, THREADS // 32)

    def operand(programs: Programs, there: Array) -> Array:
        matrix = np.zeros((len(groups), rows, _DEPTH))
        for group in np.flatnonzero(there):
            found = programs.shared.matrix(int(group) // per_program, places[groups[group, 0]])
            matrix[group] = from_16_bits(found, dtype)
        return matrix

    return operand


@instruction(
    "wgmma.mma_async.sync.aligned.m64n{8,16,24,32,40,48,56,64,80,96,112,128}k16.f32.{f16.f16,bf16.bf16}",
    7,
    8,
    together=128,
)
@instruction(
    "wgmma.mma_async.sync.aligned.m64n{144,160,176,192,208,224,240,256}k16.f32.{f16.f16,bf16.bf16}", 7, 8, together=128
)
def _multiply(operands: Operands, x: Instruction) -> Step:
    """Operands: sums, A, B, whether to add to the sums, the signs of A and B, and whether matrices are transposed."""
    match = re.search(r"m64n(\d+)k16", x.opcode)
    assert match is not None
    columns, dtype = int(match[1]), x.parts[-1]
    accumulators = tuple(operands.index[name] for name in vector(x.operands[0]))
    a_is_in_registers = x.operands[1].startswith("{")
    if len(x.operands) != 8 - a_is_in_registers or len(accumulators) != columns // 2:
        raise Fault(f"operands of {x.text}")
    left = operands.reads(vector(x.operands[1]), "u32" if a_is_in_registers else "u64")
    right, adds = operands.read(x.operands[2], "u64"), operands.predicate(x.operands[3])
    sign = int(x.operands[4]) * int(x.operands[5])
    transposed = [False] * a_is_in_registers + [text == "1" for text in x.operands[6:]]
    row, column = _accumulator_places(len(accumulators))

    def step(programs: Programs, mask: Mask) -> None:
        there = programs.whole(mask, THREADS, "wgmma")
        registers = programs.registers
        given = [programs.full(value) for value in left(registers)]
        if a_is_in_registers:
            a = _in_registers(given, dtype)
        else:
            a = _in_shared_memory(programs, given[0], there, _ROWS, dtype, transposed[0])
        b = _in_shared_memory(programs, right(registers), there, columns, dtype, transposed[1])
        keeps = programs.full(adds(registers))

        def product(programs: Programs, sums: list[Array], done: Array) -> list[Array]:
            found = sign * (a(programs, done) @ b(programs, done).transpose(0, 2, 1))[:, row, column]
            before = np.where(keeps, np.stack(sums).view(np.float32), np.float32(0))
            total = found.transpose(1, 0, 2).reshape(len(sums), -1) + before
            return list(total.astype(np.float32).view(np.uint32))

        programs.warpgroups.issue(programs, accumulators, product, there)

    return step


@instruction("wgmma.fence.sync.aligned", 0, together=128)
def _fence(operands: Operands, x: Instruction) -> Step:
    return lambda programs, mask: None


@instruction("wgmma.commit_group.sync.aligned", 0, together=128)
def _commit(operands: Operands, x: Instruction) -> Step:
    return lambda programs, mask: programs.warpgroups.commit(programs.whole(mask, THREADS, x.opcode))


@instruction("wgmma.wait_group.sync.aligned", 1, together=128)
def _wait(operands: Operands, x: Instruction) -> Step:
    left = int(x.operands[0], 0)

    def step(programs: Programs, mask: Mask) -> None:
        programs.warpgroups.wait(programs, left, programs.whole(mask, THREADS, x.opcode))

    return step
