"""Shared memory of a batch of programs, with a detector of races, and the asynchronous copies into it.

It begins as NaN. What cp.async copies arrives as late as it may: when its thread waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..core.values import UNSIGNED, Array, Fault, Mask, differ

if TYPE_CHECKING:
    from ..core.programs import Programs

_ALIGNMENT = 1024  # of each program's part: swizzled layouts are by the address


class Races:
    """Who last wrote and who read each cell since the last barrier.

    A stamp is the number of barriers passed and a warp, or in place of the warp 63 for several.
    """

    def __init__(self, cells: int) -> None:
        self.writer = np.zeros(cells, np.int32)
        self.reader = np.zeros(cells, np.int32)

    def read(self, cells: Array, stamps: Array) -> None:
        self.require_written_before(cells, stamps)
        before = self.reader[cells]
        marks = np.where((before >> 6 == stamps >> 6) & (before != stamps), stamps | 63, stamps)
        self.reader[cells] = marks
        several = self.reader[cells] != marks
        if several.any():
            self.reader[cells[several]] = (stamps | 63)[several]

    def require_written_before(self, cells: Array, stamps: Array) -> None:
        """Nothing there was written by another warp since the last barrier."""
        writer = self.writer[cells]
        race = (writer >> 6 == stamps >> 6) & (writer != stamps)
        if race.any():
            i = int(np.flatnonzero(race)[0])
            raise Fault(
                f"race: warp {stamps[i] & 63} reads shared cell {cells[i]}, which warp {writer[i] & 63} wrote, "
                "with no barrier between"
            )

    def require_written_before_warps(self, cells: Array, stamps: Array, warps: int) -> None:
        """As above for what `warps` > 1 neighbouring warps read together; stamps are those of the first."""
        race = self.writer[cells] >> 6 == stamps >> 6
        if race.any():
            i = int(np.flatnonzero(race)[0])
            first = stamps[i] & 63
            raise Fault(
                f"race: warps {first} to {first + warps - 1} read shared cell {cells[i]}, "
                f"which warp {self.writer[cells[i]] & 63} wrote, with no barrier between"
            )

    def write(self, cells: Array, stamps: Array, changed: Array) -> None:
        """changed: where the value is another one. Two warps may write the same."""
        reader, writer = self.reader[cells], self.writer[cells]
        race = (reader >> 6 == stamps >> 6) & (reader != stamps)
        if race.any():
            i = int(np.flatnonzero(race)[0])
            raise Fault(
                f"race: warp {stamps[i] & 63} writes shared cell {cells[i]}, which another warp has read, "
                "with no barrier between"
            )
        clash = changed & (writer >> 6 == stamps >> 6) & (writer != stamps)
        if clash.any():
            i = int(np.flatnonzero(clash)[0])
            raise Fault(
                f"race: warps {writer[i] & 63} and {stamps[i] & 63} write different values to shared cell {cells[i]}, "
                "with no barrier between"
            )
        self.writer[cells] = stamps


@dataclass
class _Copy:
    """Bytes under way by cp.async: which thread waits for what."""

    waiting: Array
    """bool, by thread."""
    group: Array
    """The number of the group in which each thread put it."""
    index: Array
    """Where it goes, by thread."""
    words: list[Array]
    """uint32, by thread."""


class SharedMemory:
    def __init__(self, programs: int, threads: int, size: int, grain: int) -> None:
        """size: bytes of each program. grain: bytes of a cell, those of the smallest access."""
        self.size, self.grain = size, grain
        self.stride = -(-max(size, 1) // _ALIGNMENT) * _ALIGNMENT
        self.bytes = np.full(programs * self.stride, 0xFF, np.uint8)
        self.base = np.repeat(np.arange(programs, dtype=np.int64) * self.stride, threads)
        self.races = Races(len(self.bytes) // grain)
        self.flying = np.zeros(len(self.bytes) // grain, bool)  # where a copy is under way to
        self._group = np.zeros(programs * threads, np.int64)  # which group a thread is filling
        self._copies: list[_Copy] = []

    def view(self, width: int) -> Array:
        return self.bytes.view(UNSIGNED[width])

    def index(self, addresses: Array, who: Array, size: int) -> Array:
        """Bytes from the beginning of `bytes`, for accesses of `size` bytes by threads."""
        at = addresses.astype(np.int64)
        if (at & (size - 1)).any():
            raise Fault(f"misaligned access of {size} bytes to shared memory at {int(at[(at & (size - 1)) != 0][0])}")
        if len(at) and int(at.max()) + size > self.size:
            raise Fault(f"shared access out of bounds: {size} bytes at {int(at.max())} of {self.size}")
        return at + self.base[who]

    def cells(self, index: Array, stamps: Array, size: int) -> tuple[Array, Array]:
        """The cells of accesses of `size` bytes, and the stamp of each."""
        first, several = index // self.grain, max(1, size // self.grain)
        if several == 1:
            return first, stamps
        return (first[:, None] + np.arange(several)).reshape(-1), np.repeat(stamps, several)

    def load(self, programs: Programs, addresses: Array, width: int, count: int, mask: Mask) -> list[Array]:
        size = width // 8
        at, who = programs.active(addresses, mask)
        programs.observer.shared_access(programs, at, who, size * count)
        index = self.index(at, who, size * count)
        cells, stamps = self.cells(index, programs.stamps[who], size * count)
        self.require_landed(cells)
        self.races.read(cells, stamps)
        view, first = self.view(width), index // size
        return [programs.spread(view[first + j], who, mask) for j in range(count)]

    def store(self, programs: Programs, addresses: Array, width: int, values: list[Array], mask: Mask) -> None:
        size = width // 8
        at, who = programs.active(addresses, mask)
        programs.observer.shared_access(programs, at, who, size * len(values))
        index = self.index(at, who, size * len(values))
        given = np.stack([np.broadcast_to(value, (programs.count,))[who] for value in values], 1)
        self.require_landed(self.cells(index, programs.stamps[who], size * len(values))[0])
        self.put(index, given, programs.stamps[who])

    def put(self, index: Array, values: Array, stamps: Array) -> None:
        """values: [accesses, elements] unsigned, each row from the byte of its index on."""
        size = values.dtype.itemsize
        view = self.bytes.view(values.dtype)
        elements = (index // size)[:, None] + np.arange(values.shape[1])
        cells, who = self.cells(index, stamps, size * values.shape[1])
        before = view[elements]
        view[elements] = values
        if differ(view[elements], values).any():
            raise Fault("two threads write different values to one shared address")
        differs = differ(before, values)
        per = len(cells) // max(1, differs.size)  # cells in an element; or several elements in a cell
        changed: Array = np.repeat(differs.reshape(-1), per) if per else np.any(differs.reshape(len(cells), -1), axis=1)
        self.races.write(cells, who, changed)

    def require_landed(self, cells: Array) -> None:
        """No copy is under way to these cells."""
        if self._copies and self.flying[cells].any():
            raise Fault(f"shared cell {cells[self.flying[cells]][0]} is used while a cp.async is under way to it")

    def matrix(self, program: int, addresses: Array) -> Array:
        """uint16 at the addresses (int64, any shape) of one program's memory."""
        if int(addresses.max()) + 2 > self.size:
            raise Fault(f"shared access out of bounds: a matrix up to {int(addresses.max()) + 2} of {self.size} bytes")
        found: Array = self.view(16)[(program * self.stride + addresses) // 2]
        return found

    def copy_later(
        self, programs: Programs, to: Array, source: Array, size: int, copied: Array | None, mask: Mask
    ) -> None:
        """cp.async of `size` bytes. copied: how many of them come from `source`, the rest are zeros."""
        at, who = programs.active(to, mask)
        programs.observer.shared_access(programs, at, who, size)
        index = np.zeros(programs.count, np.int64)
        index[who] = self.index(at, who, size)
        waiting = programs.mask_of(mask)
        wanted = waiting
        if copied is not None:
            bytes_ = np.broadcast_to(copied, (programs.count,))
            if not np.isin(bytes_[who], (0, size)).all():
                raise Fault("cp.async of a part of its bytes")
            wanted = waiting & (bytes_ == size)
        words = programs.global_memory.load(programs, source, 32, size // 4, wanted)
        cells, stamps = self.cells(index[who], programs.stamps[who], size)
        self.races.write(cells, stamps, np.ones(len(cells), bool))
        self.flying[cells] = True
        self._copies.append(_Copy(waiting.copy(), self._group.copy(), index, words))

    def commit(self, mask: Mask) -> None:
        """cp.async.commit_group."""
        self._group += 1 if mask is None else mask

    def wait(self, programs: Programs, left: int, mask: Mask) -> None:
        """cp.async.wait_group: all but the last `left` groups have arrived, for the threads of the mask."""
        for copy in self._copies:
            arrives = copy.waiting & (copy.group < self._group - left)
            if mask is not None:
                arrives &= mask
            if arrives.any():
                values = np.stack([word[arrives] for word in copy.words], 1)
                self.put(copy.index[arrives], values, programs.stamps[arrives])
                self.flying[self.cells(copy.index[arrives], programs.stamps[arrives], 4 * len(copy.words))[0]] = False
                copy.waiting &= ~arrives
        self._copies = [copy for copy in self._copies if copy.waiting.any()]
        for copy in self._copies:  # two copies may be under way to one place
            who = copy.waiting
            self.flying[self.cells(copy.index[who], programs.stamps[who], 4 * len(copy.words))[0]] = True
