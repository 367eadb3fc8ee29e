"""Tensor memory of sm_100: 128 lanes of 512 columns of 32 bits a program, each warp's quarter of the lanes its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..core.values import Array, Fault, Mask, from_16_bits
from .descriptors import Descriptor

if TYPE_CHECKING:
    from ..core.programs import Programs

LANES, COLUMNS = 128, 512
_FORMATS = {0: "f16", 1: "bf16"}


class TensorMemory:
    def __init__(self, programs: int) -> None:
        self.cells = np.full((programs, LANES, COLUMNS), 0xFFFFFFFF, np.uint32)
        self.allocated = np.zeros(programs, np.int64)

    def allocate(self, program: int, columns: int) -> int:
        """The first column of a new piece."""
        first = int(self.allocated[program])
        if columns not in (32, 64, 128, 256, 512) or first + columns > COLUMNS:
            raise Fault(f"tensor memory: {columns} columns asked for, {COLUMNS - first} are free")
        self.allocated[program] += columns
        return first

    def place(
        self, programs: Programs, addresses: Array, shape: str, count: int, split: int, mask: Mask
    ) -> tuple[Array, Array]:
        """Lane and first column of each thread's `count` cells. split: columns between half warps, in 16x32bx2."""
        there = np.repeat(programs.whole(mask, 32, "tcgen05"), 32)
        address = programs.full(addresses).astype(np.int64)
        lane, column = address >> 16, address & 0xFFFF
        own = 32 * (programs.warp % 4)
        foreign = there & (lane != own) & ((lane != own + 16) | (shape == "32x32b"))
        if foreign.any():
            i = int(np.flatnonzero(foreign)[0])
            raise Fault(f"tensor memory: lane {lane[i]} is not of warp {programs.warp[i]}")
        if shape == "32x32b":
            lane = lane + programs.lane
        else:
            lane = lane + programs.lane % 16
            column = column + np.where(programs.lane < 16, 0, split)
        if (there & (column + count > self.allocated[programs.program])).any():
            raise Fault(f"tensor memory out of bounds: column {int(column[there].max()) + count - 1}")
        return np.where(there, lane, 0), np.where(there, column, 0)

    def require_written_before(self, programs: Programs, thread: int, left: int, right: int, kind: int) -> None:
        """No other warp wrote the operands of a product since the last barrier."""
        rows, columns = (kind >> 24 & 31) * 16, (kind >> 17 & 63) * 8
        shared, base = programs.shared, int(programs.program[thread]) * programs.shared.stride
        for bits, height, transposed in ((left, rows, kind >> 15 & 1), (right, columns, kind >> 16 & 1)):
            at = Descriptor.of_tcgen05(bits).addresses(height, 16, transposed=bool(transposed)).reshape(-1)
            shared.races.require_written_before(
                (at + base) // shared.grain, np.full(len(at), programs.stamps[thread], np.int32)
            )

    def multiply(self, programs: Programs, program: int, operands: tuple[int, int, int, int, bool]) -> None:
        """tcgen05.mma with both operands in shared memory: accumulator address, two descriptors, shape, accumulate."""
        to, left, right, kind, accumulate = operands
        rows, columns = (kind >> 24 & 31) * 16, (kind >> 17 & 63) * 8
        if (
            kind >> 4 & 3 != 1
            or kind >> 13 & 3
            or (kind >> 10 & 7) != (kind >> 7 & 7)
            or (kind >> 7 & 7) not in _FORMATS
        ):
            raise Fault(f"tcgen05.mma: instruction descriptor {kind:#x} not known")
        dtype = _FORMATS[kind >> 7 & 7]

        def matrix(bits: int, height: int, transposed: int) -> Array:
            at = Descriptor.of_tcgen05(bits).addresses(height, 16, transposed=bool(transposed))
            return from_16_bits(programs.shared.matrix(program, at), dtype).astype(np.float64)

        product = matrix(left, rows, kind >> 15 & 1) @ matrix(right, columns, kind >> 16 & 1).T
        row = np.arange(rows)
        lane = (to >> 16) + (row if rows == 128 else row // 16 * 32 + row % 16)  # 64 rows: half of each warp's lanes
        place = program, lane[:, None], (to & 0xFFFF) + np.arange(columns)[None, :]
        before = self.cells[place].view(np.float32) if accumulate else 0.0
        self.cells[place] = (product + before).astype(np.float32).view(np.uint32)
