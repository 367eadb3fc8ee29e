"""mbarriers, and the asynchronous work that arrives at them: as late as it may, when somebody waits.

The products of tcgen05 and the copies of the TMA unit are queued at their issue. A thread that waits for a barrier lets
happen what has to happen before it completes, in the order of issue; nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from ..core.values import Fault

Work = Callable[[], None]


@dataclass
class _Barrier:
    expected: int
    """Arrivals of a phase."""
    left: int
    """Arrivals that this phase still lacks."""
    parity: int = 0
    """Of the phase under way."""
    bytes_left: int = 0
    """What copies still have to bring (negative: what they brought before it was announced)."""

    def settle(self) -> None:
        """Begin the next phase if this one is complete."""
        if self.left == 0 and self.bytes_left == 0:
            self.left, self.parity = self.expected, self.parity ^ 1


class Barriers:
    """Of a batch of programs; a barrier is known by its program and its address in shared memory."""

    def __init__(self) -> None:
        self._barriers: dict[tuple[int, int], _Barrier] = {}
        self._products: dict[int, list[Work | int]] = defaultdict(list)  # in order; an int: the barrier they arrive at
        self._copies: dict[tuple[int, int], list[Work]] = defaultdict(list)

    def init(self, program: int, address: int, count: int) -> None:
        self._barriers[program, address] = _Barrier(count, count)

    def invalidate(self, program: int, address: int) -> None:
        self._at(program, address)
        del self._barriers[program, address]

    def arrive(self, program: int, address: int, expected_bytes: int = 0) -> None:
        barrier = self._at(program, address)
        if barrier.left == 0:
            raise Fault("more arrivals at an mbarrier than it was made for")
        barrier.left -= 1
        barrier.bytes_left += expected_bytes
        barrier.settle()

    def is_past(self, program: int, address: int, parity: int) -> bool:
        """Whether the phase of this parity is complete, once all that is under way to the barrier has arrived."""
        barrier = self._at(program, address)
        while barrier.parity == parity and self._advance(program, address):
            pass
        return barrier.parity != parity

    def queue_product(self, program: int, work: Work) -> None:
        self._products[program].append(work)

    def commit_products(self, program: int, address: int) -> None:
        """All products so far arrive once at the barrier when they are done."""
        self._products[program].append(address)

    def queue_copy(self, program: int, address: int, size: int, work: Work) -> None:
        """A copy of `size` bytes that the barrier counts."""

        def land() -> None:
            work()
            barrier = self._at(program, address)
            barrier.bytes_left -= size
            barrier.settle()

        self._at(program, address)
        self._copies[program, address].append(land)

    def _at(self, program: int, address: int) -> _Barrier:
        if (program, address) not in self._barriers:
            raise Fault(f"no mbarrier was made at {address}")
        return self._barriers[program, address]

    def _advance(self, program: int, address: int) -> bool:
        """Let the next thing happen that arrives at this barrier; False if there is none."""
        if copies := self._copies[program, address]:
            copies.pop(0)()
            return True
        queue = self._products[program]
        if address not in queue:
            return False
        while (work := queue.pop(0)) != address:
            if isinstance(work, int):
                self.arrive(program, work)
            else:
                work()
        self.arrive(program, address)
        return True
