"""Tensor memory of sm_100: 128 lanes of 512 columns of 32 bits a program, each warp's quarter of the lanes its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..core.values import Array, Fault, Mask, from_16_bits
from .descriptors import Descriptor

if TYPE_CHECKING:
    from ..core.programs import Programs

LANES, COLUMNS = 128, 512
_DEPTH = 16
_FORMATS = {0: "f16", 1: "bf16"}


@dataclass(frozen=True)
class Product:
    """Operands of one tcgen05.mma."""

    to: int
    """Lane and column of the accumulator."""
    left: int
    """A descriptor, or lane and column of a matrix in tensor memory, two elements of a row in a cell."""
    right: int
    """A descriptor."""
    kind: int
    """The instruction descriptor: formats and shape."""
    accumulates: bool
    left_is_in_tensor_memory: bool

    def __post_init__(self) -> None:
        kind = self.kind
        formats = kind >> 7 & 7, kind >> 10 & 7
        if kind >> 4 & 3 != 1 or kind >> 13 & 3 or formats[0] != formats[1] or formats[0] not in _FORMATS:
            raise Fault(f"tcgen05.mma: instruction descriptor {kind:#x} not known")

    @property
    def dtype(self) -> str:
        return _FORMATS[self.kind >> 7 & 7]

    @property
    def rows(self) -> int:
        return (self.kind >> 24 & 31) * 16

    @property
    def columns(self) -> int:
        return (self.kind >> 17 & 63) * 8

    def addresses(self) -> list[Array]:
        """Of the elements of the matrices in shared memory, the right one last."""
        operands = [(self.right, self.columns, self.kind >> 16 & 1)]
        if not self.left_is_in_tensor_memory:
            operands.insert(0, (self.left, self.rows, self.kind >> 15 & 1))
        return [
            Descriptor.of_tcgen05(bits).addresses(height, _DEPTH, transposed=bool(transposed))
            for bits, height, transposed in operands
        ]


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

    def require_written_before(self, programs: Programs, thread: int, product: Product) -> None:
        """No other warp wrote the operands of a product since the last barrier."""
        shared, base = programs.shared, int(programs.program[thread]) * programs.shared.stride
        for addresses in product.addresses():
            at = addresses.reshape(-1)
            shared.races.require_written_before(
                (at + base) // shared.grain, np.full(len(at), programs.stamps[thread], np.int32)
            )

    def multiply(self, programs: Programs, program: int, product: Product) -> None:
        """tcgen05.mma: the accumulator's cells become, or are added to by, the product."""
        dtype, rows, columns = product.dtype, product.rows, product.columns
        *in_shared, right = (from_16_bits(programs.shared.matrix(program, at), dtype) for at in product.addresses())
        row = np.arange(rows)
        lane = row if rows == LANES else row // 16 * 32 + row % 16  # 64 rows: half of each warp's lanes
        if product.left_is_in_tensor_memory:
            first = product.left & 0xFFFF
            words = self.cells[program, (product.left >> 16) + lane[:, None], first + np.arange(_DEPTH // 2)[None, :]]
            left = from_16_bits(np.ascontiguousarray(words).view(np.uint16), dtype)
        else:
            left = in_shared[0]
        place = program, (product.to >> 16) + lane[:, None], (product.to & 0xFFFF) + np.arange(columns)[None, :]
        before = self.cells[place].view(np.float32) if product.accumulates else 0.0
        total = left.astype(np.float64) @ right.astype(np.float64).T + before
        self.cells[place] = total.astype(np.float32).view(np.uint32)
