"""The state of a batch of programs that run side by side: registers, memories, and who each thread is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..memory.barriers import Barriers
from ..memory.global_memory import GlobalMemory
from ..memory.shared_memory import SharedMemory
from ..memory.tensor_memory import TensorMemory
from ..memory.warpgroup import THREADS, WarpgroupProducts
from .operands import SPECIAL
from .values import DTYPE, WIDTH, Array, Fault, Mask

if TYPE_CHECKING:
    from .translate import Translated


class Observer:
    """Is told what is done; by default it looks away."""

    def global_access(self, programs: Programs, addresses: Array, threads: Array, size: int, *, is_store: bool) -> None:
        """`size` bytes at each address, by those threads."""

    def shared_access(self, programs: Programs, addresses: Array, threads: Array, size: int) -> None:
        """As above; addresses are a program's own."""

    def block(self, programs: Programs, number: int, mask: Mask) -> None:
        """Basic block `number` runs."""


@dataclass(frozen=True)
class Launch:
    """What the programs of one launch have in common."""

    kernel: Translated
    grid: tuple[int, int, int]
    num_warps: int
    shared: int
    """Bytes of shared memory of a program."""
    parameters: dict[str, bytes]
    """Bytes of each kernel parameter, by name."""
    global_memory: GlobalMemory
    observer: Observer


class Programs:
    """Some programs of a launch; arrays have one element per thread, program after program."""

    def __init__(self, launch: Launch, numbers: range) -> None:
        kernel = launch.kernel
        self.launch, self.observer = launch, launch.observer
        self.warps, self.threads = launch.num_warps, 32 * launch.num_warps
        self.programs, self.count = len(numbers), len(numbers) * self.threads
        self.everyone = np.arange(self.count)
        self.program = self.everyone // self.threads  # of this batch
        self.lane = self.everyone % 32
        self.warp = self.everyone % self.threads // 32  # of its program
        self.global_memory = launch.global_memory
        self.shared = SharedMemory(self.programs, self.threads, max(launch.shared, kernel.static_shared), kernel.grain)
        self.barriers = Barriers()
        self.tensor_memory = TensorMemory(self.programs if kernel.uses_tensor_memory else 0)
        self.warpgroups = WarpgroupProducts(self.count // THREADS)
        # Barriers passed and warp: what the detectors of races compare. The first epoch is 1: 0 means never.
        self.stamps = (64 + self.warp).astype(np.int32)
        self.global_stamps = (np.repeat(np.asarray(numbers, np.int64) + 1, self.threads) << 32) + 64 + self.warp
        self.registers = self._first_registers(numbers)
        self.spinning = False
        """Whether the last block waited for an mbarrier in vain."""

    def _first_registers(self, numbers: range) -> list[Array]:
        kernel, grid = self.launch.kernel, self.launch.grid
        number = np.repeat(np.asarray(numbers), self.threads)
        special = dict(zip([f"nctaid.{axis}" for axis in "xyz"], grid, strict=True))
        special |= {"ntid.x": self.threads, "ntid.y": 1, "ntid.z": 1, "tid.y": 0, "tid.z": 0}
        own = {
            "tid.x": self.everyone % self.threads,
            "laneid": self.lane,
            "warpid": self.warp,
            "ctaid.x": number % grid[0],
            "ctaid.y": number // grid[0] % grid[1],
            "ctaid.z": number // (grid[0] * grid[1]),
            **{name: np.array([value]) for name, value in special.items()},
        }
        # What nobody has written shows: predicates are true, numbers NaN.
        unwritten = {kind: ~np.zeros(1, DTYPE[kind]) for kind in WIDTH if kind[0] in "bp"}
        registers = [unwritten[kind] for kind in kernel.registers.values()]
        return [*registers, *(own[name].astype(np.uint32) for name in SPECIAL), *kernel.constants]

    def active(self, values: Array, mask: Mask) -> tuple[Array, Array]:
        """The values of the threads that are in the mask, and which those are."""
        who = self.everyone if mask is None else np.flatnonzero(mask)
        if len(values) == 1 != self.count:
            return np.broadcast_to(values, who.shape), who
        return values if mask is None else values[who], who

    def spread(self, values: Array, who: Array, mask: Mask) -> Array:
        """The values of some threads as an array of all, 0 elsewhere."""
        if mask is None:
            return values
        out = np.zeros(self.count, values.dtype)
        out[who] = values
        return out

    def full(self, values: Array) -> Array:
        """One element per thread."""
        return np.broadcast_to(values, (self.count,))

    def mask_of(self, mask: Mask) -> Array:
        return np.ones(self.count, bool) if mask is None else mask

    def narrowed(self, mask: Mask, predicate: Array) -> Mask | bool:
        """The threads of the mask for which the predicate holds; False if there are none."""
        if len(predicate) == 1 != self.count:
            return mask if predicate[0] else False
        chosen = predicate if mask is None else predicate & mask
        count = np.count_nonzero(chosen)
        return False if count == 0 else None if count == self.count else chosen

    def whole(self, mask: Mask, threads: int, what: str) -> Array:
        """bool per group of `threads`: whether it is in the mask. No group may be there in part."""
        if mask is None:
            return np.ones(self.count // threads, bool)
        there = mask.reshape(-1, threads).sum(1)
        if not ((there == 0) | (there == threads)).all():
            raise Fault(f"{what} by a part of a {'warp' if threads == 32 else 'warpgroup'}")
        return there == threads

    def pass_barrier(self, there: Array) -> None:
        """Programs (bool each) pass a barrier: accesses before it and after it are in order."""
        step = np.repeat(there, self.threads).astype(np.int32) << 6
        self.stamps += step
        self.global_stamps += step
