"""mbarriers and fences. Barriers of a whole program end a basic block: see `core.translate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..core.operands import Operands
from ..core.parse import Instruction
from ..core.table import Step, instruction
from ..core.values import Fault, Mask

if TYPE_CHECKING:
    from ..core.programs import Programs

_SHARED = "{shared,shared::cta}"
Act = Callable[["Programs", int, int, int], None]


def _each(operands: Operands, address: str, value: str | None, act: Act) -> Step:
    """`act` with the program, the address and the value of each thread."""
    at = operands.address(address, "shared")
    read = operands.read(value, "u32") if value is not None else None

    def step(programs: Programs, mask: Mask) -> None:
        addresses, who = programs.active(at(programs.registers), mask)
        values = programs.full(read(programs.registers))[who] if read is not None else np.zeros(len(who), np.uint32)
        for thread, place, given in zip(who, addresses, values, strict=True):
            act(programs, int(programs.program[thread]), int(place), int(given))

    return step


def _make(programs: Programs, program: int, address: int, count: int) -> None:
    programs.barriers.init(program, address, count)


def _remove(programs: Programs, program: int, address: int, _: int) -> None:
    programs.barriers.invalidate(program, address)


def _arrive_at(programs: Programs, program: int, address: int, expected_bytes: int) -> None:
    programs.barriers.arrive(program, address, expected_bytes)


@instruction(f"mbarrier.init.{_SHARED}.b64", 2)
def _init(operands: Operands, x: Instruction) -> Step:
    return _each(operands, x.operands[0], x.operands[1], _make)


@instruction(f"mbarrier.inval.{_SHARED}.b64", 1)
def _invalidate(operands: Operands, x: Instruction) -> Step:
    return _each(operands, x.operands[0], None, _remove)


@instruction(f"mbarrier.arrive.{_SHARED}.b64", 2)
def _arrive(operands: Operands, x: Instruction) -> Step:
    _require_no_state(x)
    return _each(operands, x.operands[1], None, _arrive_at)


@instruction(f"mbarrier.arrive.expect_tx.{_SHARED}.b64", 3)
def _arrive_expecting(operands: Operands, x: Instruction) -> Step:
    _require_no_state(x)
    return _each(operands, x.operands[1], x.operands[2], _arrive_at)


def _require_no_state(x: Instruction) -> None:
    """Barriers are waited for by parity: the state token of an arrival is thrown away."""
    if x.operands[0] != "_":
        raise Fault(f"the state of an mbarrier: {x.text}")


@instruction(f"mbarrier.try_wait.parity.{_SHARED}.b64", 3)
def _try_wait(operands: Operands, x: Instruction) -> Step:
    """What arrives at the barrier is done now. Threads that wait in vain are called again later."""
    address, parity = operands.address(x.operands[1], "shared"), operands.read(x.operands[2], "u32")
    write = operands.write(x.operands[0], "pred")

    def step(programs: Programs, mask: Mask) -> None:
        addresses, who = programs.active(address(programs.registers), mask)
        wanted = programs.full(parity(programs.registers))[who]
        answers: dict[tuple[int, int, int], bool] = {}
        is_past = np.zeros(len(who), bool)
        for i, (thread, place, bit) in enumerate(zip(who.tolist(), addresses.tolist(), wanted.tolist(), strict=True)):
            key = thread // programs.threads, place, bit
            if key not in answers:
                answers[key] = programs.barriers.is_past(*key)
            is_past[i] = answers[key]
        programs.spinning = not is_past.any()
        write(programs, programs.spread(is_past, who, mask), mask)

    return step


@instruction("fence.proxy.async{,.shared::cta,.global} fence.mbarrier_init.release.cluster", 0)
@instruction("fence.{sc,acq_rel}.{cta,gpu,sys} membar.{cta,gl,sys}", 0)
@instruction("griddepcontrol.{wait,launch_dependents}", 0)
def _nothing(operands: Operands, x: Instruction) -> Step:
    """Memory is always in order here."""
    return lambda programs, mask: None


@instruction("nanosleep.u32", 1)
def _sleep(operands: Operands, x: Instruction) -> Step:
    return lambda programs, mask: None
