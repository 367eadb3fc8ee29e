"""Products of warpgroups (wgmma) that are under way: done as late as they may be.

From its issue until its group is awaited a product has not looked at shared memory, and its accumulators hold NaN for
everyone but the next product: whoever reads them too early, or overwrites an operand, sees it in the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..core.values import Array, Fault

if TYPE_CHECKING:
    from ..core.programs import Programs

THREADS = 128
_UNKNOWN = np.uint32(0xFFFFFFFF)

Product = Callable[["Programs", list[Array], Array], list[Array]]
"""From accumulators (uint32, by thread) and the groups that compute (bool each) to the new accumulators."""


@dataclass
class _Flight:
    """Accumulators that products are under way to."""

    registers: tuple[int, ...]
    values: list[Array]
    outstanding: Array
    """How many products, by warpgroup."""


@dataclass
class _Issued:
    product: Product
    flight: _Flight
    waiting: Array
    """bool, by warpgroup."""
    group: Array
    """int, by warpgroup: in which of its groups it was put."""


@dataclass
class WarpgroupProducts:
    groups: int
    flights: dict[tuple[int, ...], _Flight] = field(default_factory=dict)
    issued: list[_Issued] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.filling = np.zeros(self.groups, np.int64)  # the number of the group that a warpgroup is filling

    def issue(self, programs: Programs, registers: tuple[int, ...], product: Product, there: Array) -> None:
        """registers: indexes of the accumulators. there: which warpgroups issue it."""
        flight = self.flights.get(registers)
        if flight is None:
            if any(set(registers) & set(other) for other in self.flights):
                raise Fault("accumulators that partly belong to another product under way")
            zeros = [np.zeros(programs.count, np.uint32) for _ in registers]
            flight = self.flights[registers] = _Flight(registers, zeros, np.zeros(self.groups, np.int64))
        begins = np.repeat(there & (flight.outstanding == 0), THREADS)
        flying = np.repeat(there, THREADS)
        for i, register in enumerate(registers):
            value = programs.registers[register]
            flight.values[i] = np.where(begins, value, flight.values[i])
            programs.registers[register] = np.where(flying, _UNKNOWN, value)
        flight.outstanding = flight.outstanding + there
        self.issued.append(_Issued(product, flight, there.copy(), self.filling.copy()))

    def commit(self, there: Array) -> None:
        self.filling += there

    def wait(self, programs: Programs, left: int, there: Array) -> None:
        """All but the last `left` groups of these warpgroups are done."""
        for issued in self.issued:
            done = issued.waiting & there & (issued.group < self.filling - left)
            if not done.any():
                continue
            flight = issued.flight
            values = issued.product(programs, flight.values, done)
            threads = np.repeat(done, THREADS)
            flight.values = [np.where(threads, new, old) for new, old in zip(values, flight.values, strict=True)]
            flight.outstanding = flight.outstanding - done
            issued.waiting &= ~done
            self._land(programs, flight, done & (flight.outstanding == 0))
        self.issued = [issued for issued in self.issued if issued.waiting.any()]

    def _land(self, programs: Programs, flight: _Flight, landed: Array) -> None:
        """Accumulators that nothing is under way to any more are registers again."""
        if not landed.any():
            return
        threads = np.repeat(landed, THREADS)
        for register, value in zip(flight.registers, flight.values, strict=True):
            programs.registers[register] = np.where(threads, value, programs.registers[register])
        if not flight.outstanding.any():
            del self.flights[flight.registers]
