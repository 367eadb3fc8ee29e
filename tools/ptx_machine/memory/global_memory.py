"""Global memory: the tensors of a launch, with bounds, alignment and the order of programs checked.

Programs of a launch have no order. So a cell that two programs store to, or that one stores to and another loads from,
is a fault, and within a program two warps may meet at a cell only with a barrier between. Atomics are left out of this.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.values import UNSIGNED, Array, Fault, Mask, differ

if TYPE_CHECKING:
    from ..core.programs import Programs

_SEVERAL = -1


@dataclass(frozen=True)
class Extent:
    """Where a tensor's elements lie, from the first to the last."""

    name: str
    start: int
    size: int
    """Bytes."""
    element: int
    """Bytes."""


class Buffer:
    """The memory of one tensor, or of several that overlap."""

    def __init__(self, extent: Extent) -> None:
        self.name, self.size, self.grain = extent.name, extent.size, extent.element
        self.start, self.end = np.uint64(extent.start), np.uint64(extent.start + extent.size)
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * extent.size).from_address(extent.start))
        self._views: dict[int, Array] = {}
        cells = -(-extent.size // extent.element)
        self.writer = np.zeros(cells, np.int64)  # program + 1, barriers passed, warp: of who stored last
        self.reader = np.zeros(cells, np.int32)  # program + 1, or several

    def view(self, size: int, at: int = 0) -> Array:
        """As elements of `size` bytes, from the byte `at` on."""
        key = size * 256 + at
        if key not in self._views:
            count = max(0, (len(self.bytes) - at) // size)
            self._views[key] = self.bytes[at : at + count * size].view(UNSIGNED[size * 8])
        return self._views[key]


def buffers_of(extents: list[Extent]) -> list[Buffer]:
    """One buffer for each run of extents that overlap."""
    merged: list[Extent] = []
    for extent in sorted((extent for extent in extents if extent.size), key=lambda extent: extent.start):
        last = merged[-1] if merged else None
        if last is not None and extent.start < last.start + last.size:
            end = max(last.start + last.size, extent.start + extent.size)
            name = last.name if extent.name in last.name.split("/") else f"{last.name}/{extent.name}"
            merged[-1] = Extent(name, last.start, end - last.start, min(last.element, extent.element))
        else:
            merged.append(extent)
    return [Buffer(extent) for extent in merged]


class GlobalMemory:
    """All buffers of a launch. One object serves all of its programs."""

    def __init__(self, extents: list[Extent]) -> None:
        self.buffers = buffers_of(extents)

    def load(self, programs: Programs, addresses: Array, width: int, count: int, mask: Mask) -> list[Array]:
        """`count` neighbouring elements of `width` bits from each thread's address; 0 for threads not in the mask."""
        size = width // 8
        at, who = programs.active(addresses, mask)
        programs.observer.global_access(programs, at, who, size * count, is_store=False)
        found = [np.zeros(len(at), UNSIGNED[width]) for _ in range(count)]
        for buffer, chosen in self._buffers(at, size * count):
            self._mark_read(buffer, programs, at[chosen], who[chosen], size * count)
            view, index = _elements(buffer, at[chosen], size)
            for j in range(count):
                found[j][chosen] = view[index + j]
        return [programs.spread(values, who, mask) for values in found]

    def store(self, programs: Programs, addresses: Array, width: int, values: list[Array], mask: Mask) -> None:
        size, step = width // 8, width // 8 * len(values)
        at, who = programs.active(addresses, mask)
        programs.observer.global_access(programs, at, who, step, is_store=True)
        given = [np.broadcast_to(value, (programs.count,))[who] for value in values]
        for buffer, chosen in self._buffers(at, step):
            self._mark_written(buffer, programs, at[chosen], who[chosen], step)
            view, index = _elements(buffer, at[chosen], size)
            for j, value in enumerate(given):
                view[index + j] = value[chosen]
                if differ(view[index + j], value[chosen]).any():
                    raise Fault(f"two threads store different values to one address of {buffer.name}")

    def atomic(self, programs: Programs, address: np.uint64, dtype: np.dtype[Any]) -> tuple[Array, int]:
        """The array and the index of the element at an address."""
        at = np.array([address])
        for buffer, _ in self._buffers(at, dtype.itemsize):
            view, index = _elements(buffer, at, dtype.itemsize)
            return view.view(dtype), int(index[0])
        raise Fault("no such address")

    def _buffers(self, at: Array, size: int) -> list[tuple[Buffer, Any]]:
        """Which of the addresses lie in which buffer; Fault if one lies in none or is not aligned."""
        if not len(at):
            return []
        if (at & np.uint64(size - 1)).any():
            bad = int(at[(at & np.uint64(size - 1)) != 0][0])
            raise Fault(f"misaligned access of {size} bytes at {bad:#x}")
        low, high = at.min(), at.max() + np.uint64(size)
        for buffer in self.buffers:
            if buffer.start <= low and high <= buffer.end:
                return [(buffer, slice(None))]
        found = []
        is_inside = np.zeros(len(at), bool)
        for buffer in self.buffers:
            chosen = (at >= buffer.start) & (at + np.uint64(size) <= buffer.end)
            if chosen.any():
                found.append((buffer, chosen))
                is_inside |= chosen
        if not is_inside.all():
            raise Fault(self._outside(int(at[~is_inside][0]), size))
        return found

    def _outside(self, address: int, size: int) -> str:
        def distance(buffer: Buffer) -> int:
            return max(int(buffer.start) - address, address - int(buffer.end))

        if not self.buffers:
            return f"global access out of bounds: {size} bytes at {address:#x}, and there is no tensor"
        near = min(self.buffers, key=distance)
        offset = address - int(near.start)
        return f"global access out of bounds: {size} bytes at {offset:+d} of {near.name}, which has {near.size} bytes"

    def _mark_read(self, buffer: Buffer, programs: Programs, at: Array, who: Array, size: int) -> None:
        cells, who = _cells(buffer, at, who, size)
        written, own = buffer.writer[cells], programs.global_stamps[who]
        if written.any():
            self._require_own("loads", buffer, cells, written, own)
        program = (own >> 32).astype(np.int32)
        before = buffer.reader[cells]
        buffer.reader[cells] = np.where((before == 0) | (before == program), program, _SEVERAL)
        several = buffer.reader[cells] != program
        if several.any():
            buffer.reader[cells[several]] = _SEVERAL

    def _mark_written(self, buffer: Buffer, programs: Programs, at: Array, who: Array, size: int) -> None:
        cells, who = _cells(buffer, at, who, size)
        own = programs.global_stamps[who]
        program = (own >> 32).astype(np.int32)
        read = buffer.reader[cells]
        if ((read != 0) & (read != program)).any():
            bad = cells[(read != 0) & (read != program)][0]
            raise Fault(f"a program stores to element {bad} of {buffer.name}, which another program loads")
        self._require_own("stores to", buffer, cells, buffer.writer[cells], own)
        buffer.writer[cells] = own
        self._require_own("stores to", buffer, cells, buffer.writer[cells], own)

    def _require_own(self, what: str, buffer: Buffer, cells: Array, written: Array, own: Array) -> None:
        """What was written, was by this program, and by another warp only before the last barrier."""
        other = (written != 0) & (written >> 32 != own >> 32)
        if other.any():
            i = int(np.flatnonzero(other)[0])
            raise Fault(
                f"program {(own[i] >> 32) - 1} {what} element {cells[i]} of {buffer.name}, "
                f"which program {(written[i] >> 32) - 1} stores to"
            )
        race = (written != own) & (written >> 6 == own >> 6)
        if what == "loads" and race.any():
            i = int(np.flatnonzero(race)[0])
            raise Fault(
                f"race: warp {own[i] & 63} {what} element {cells[i]} of {buffer.name}, "
                f"which warp {written[i] & 63} stored to, with no barrier between"
            )


def _elements(buffer: Buffer, at: Array, size: int) -> tuple[Array, Array]:
    """An array of the buffer's memory and each address's index in it; the tensor may begin at any byte."""
    first = int(buffer.start) % size
    return buffer.view(size, -first % size), ((at - buffer.start).astype(np.int64) - (-first % size)) // size


def _cells(buffer: Buffer, at: Array, who: Array, size: int) -> tuple[Array, Array]:
    """The cells that accesses of `size` bytes touch, and who touches each."""
    first = (at - buffer.start).astype(np.int64) // buffer.grain
    several = max(1, size // buffer.grain)
    if several == 1:
        return first, who
    return (first[:, None] + np.arange(several)).reshape(-1), np.repeat(who, several)
