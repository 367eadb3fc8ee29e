"""Matrix instructions of a warp: mma.sync, ldmatrix, stmatrix. Sums are made in fp64 and rounded once to fp32."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ..core.operands import Operands, vector
from ..core.parse import Instruction
from ..core.table import Step, instruction
from ..core.values import Array, Mask, from_16_bits, from_tf32

if TYPE_CHECKING:
    from ..core.programs import Programs

_LANE = np.arange(32)
_GROUP, _IN_GROUP = _LANE // 4, _LANE % 4


@cache
def _places(height: int, width: int, per: int, registers: int, *, by_rows: bool) -> tuple[Array, Array]:
    """Row and column of each element that a warp holds, [registers, lane, elements of a register].

    A piece is 8 x (4 * per); registers go down the rows first. by_rows: lanes of four share a row (A and the sums),
    else a column (B).
    """
    register, element = np.arange(registers)[:, None, None], np.arange(per)[None, None, :]
    pieces_down = height // 8 if by_rows else 1
    across, down = _GROUP[None, :, None], _IN_GROUP[None, :, None] * per + element
    if by_rows:
        row = across + 8 * (register % pieces_down) + 0 * element
        column = down + 4 * per * (register // pieces_down)
    else:
        row, column = down + 4 * per * register, across + 0 * down + 0 * register
    assert row.max() == height - 1 and column.max() == width - 1
    return np.broadcast_arrays(row, column)[0], np.broadcast_arrays(row, column)[1]


def fragment(values: list[Array], dtype: str, shape: tuple[int, int], *, by_rows: bool) -> Array:
    """fp64 [warps, rows, columns] of the registers (uint32, by thread) of each warp."""
    stacked = np.stack(values)  # [registers, threads]
    if dtype == "tf32":
        elements = from_tf32(stacked).reshape(len(values), -1, 32, 1)
    else:
        elements = from_16_bits(np.ascontiguousarray(stacked).view(np.uint16), dtype).reshape(len(values), -1, 32, 2)
    row, column = _places(*shape, elements.shape[3], len(values), by_rows=by_rows)
    out = np.zeros((elements.shape[1], *shape))
    out[:, row, column] = elements.transpose(1, 0, 2, 3)
    return out


@instruction("mma.sync.aligned.m16n8k{8,16}.row.col.f32.{f16.f16,bf16.bf16}.f32", 4, together=32)
@instruction("mma.sync.aligned.m16n8k{4,8}.row.col.f32.tf32.tf32.f32", 4, together=32)
def _multiply(operands: Operands, x: Instruction) -> Step:
    match = re.search(r"m16n8k(\d+)", x.opcode)
    assert match is not None
    depth, dtype = int(match[1]), x.parts[-2]
    left, right, sums = (operands.reads(vector(text), "u32") for text in x.operands[1:])
    write = operands.writes(vector(x.operands[0]), "u32")
    row, column = _places(16, 8, 2, 2, by_rows=True)

    def step(programs: Programs, mask: Mask) -> None:
        programs.whole(mask, 32, x.opcode)
        registers = programs.registers
        a = fragment([programs.full(value) for value in left(registers)], dtype, (16, depth), by_rows=True)
        b = fragment([programs.full(value) for value in right(registers)], dtype, (depth, 8), by_rows=False)
        product = (a @ b)[:, row, column]  # [warps, 2 registers of a row, lane, 2 columns]
        results = []
        for i, value in enumerate(sums(registers)):
            total = product[:, i // 2, :, i % 2].reshape(-1) + value.view(np.float32)
            results.append(total.astype(np.float32).view(np.uint32))
        write(programs, results, mask)

    return step


def _row_threads(programs: Programs, mask: Mask, count: int, what: str) -> Array:
    """bool: the threads whose addresses count, 8 for each of `count` matrices."""
    return np.repeat(programs.whole(mask, 32, what), 32) & (programs.lane < 8 * count)


@instruction("ldmatrix.sync.aligned.m8n8.x{1,2,4}{,.trans}.shared{,::cta}.b16", 2, together=32)
def _load(operands: Operands, x: Instruction) -> Step:
    """Thread 4 i + j gets elements 2 j and 2 j + 1 of row i (transposed: of column i)."""
    address = operands.address(x.operands[1], "shared")
    parts, transposed = vector(x.operands[0]), x.has("trans")
    write = operands.writes(parts, "u32")

    def step(programs: Programs, mask: Mask) -> None:
        rows = _row_threads(programs, mask, len(parts), x.opcode)
        values = programs.shared.load(programs, address(programs.registers), 32, 4, rows)
        chosen = np.stack(values, 1).reshape(-1, 32, 4)[:, : 8 * len(parts)]  # [warps, rows of all matrices, words]
        matrices = np.ascontiguousarray(chosen).view(np.uint16).reshape(-1, len(parts), 8, 8)
        if transposed:
            matrices = matrices.transpose(0, 1, 3, 2)
        words = np.ascontiguousarray(matrices).view(np.uint32).reshape(-1, len(parts), 32)
        write(programs, [words[:, i].reshape(-1) for i in range(len(parts))], mask)

    return step


@instruction("stmatrix.sync.aligned.m8n8.x{1,2,4}{,.trans}.shared{,::cta}.b16", 2, together=32)
def _store(operands: Operands, x: Instruction) -> Step:
    address = operands.address(x.operands[0], "shared")
    parts, transposed = vector(x.operands[1]), x.has("trans")
    reads = operands.reads(parts, "u32")

    def step(programs: Programs, mask: Mask) -> None:
        rows = _row_threads(programs, mask, len(parts), x.opcode)
        given = np.stack([programs.full(value).reshape(-1, 32) for value in reads(programs.registers)], 1)
        matrices = np.ascontiguousarray(given).view(np.uint16).reshape(-1, len(parts), 8, 8)
        if transposed:
            matrices = matrices.transpose(0, 1, 3, 2)
        words = np.zeros((programs.count // 32, 32, 4), np.uint32)
        words[:, : 8 * len(parts)] = np.ascontiguousarray(matrices).view(np.uint32).reshape(-1, 8 * len(parts), 4)
        by_thread = words.reshape(-1, 4)
        programs.shared.store(programs, address(programs.registers), 32, [by_thread[:, j] for j in range(4)], rows)

    return step
