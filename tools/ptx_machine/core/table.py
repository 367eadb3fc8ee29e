"""The instruction table: which whole opcodes are known, with how many operands, and what each becomes.

Everything else is refused. A modifier that is not understood must not be passed over: `max.f32` has a third operand on
sm_100, `redux.max.f32` and `redux.max.NaN.f32` differ where a thread has NaN.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .parse import Instruction
from .values import Fault, Mask

if TYPE_CHECKING:
    from .operands import Operands
    from .programs import Programs

Step = Callable[["Programs", Mask], None]
"""Executes one instruction for the threads of the mask."""
Build = Callable[["Operands", Instruction], Step]


@dataclass(frozen=True)
class Form:
    build: Build
    operands: frozenset[int]
    together: int
    """How many threads must be there when it runs: 1, a warp (32) or a warpgroup (128)."""


TABLE: dict[str, Form] = {}


def instruction(patterns: str, *operands: int, together: int = 1) -> Callable[[Build], Build]:
    """Put opcodes into the table.

    patterns: whole opcodes between spaces; "{a,b}" stands for either, so "{,v2.}b32" for "b32" and "v2.b32".
    operands: the numbers of operands it may have.
    """

    def register(build: Build) -> Build:
        for pattern in patterns.split():
            for opcode in _expanded(pattern):
                if opcode in TABLE:
                    raise ValueError(f"{opcode} stands in the table already")
                TABLE[opcode] = Form(build, frozenset(operands), together)
        return build

    return register


def _expanded(pattern: str) -> Iterator[str]:
    choice = re.search(r"\{([^{}]*)\}", pattern)
    if choice is None:
        yield pattern
        return
    for chosen in choice[1].split(","):
        yield from _expanded(pattern[: choice.start()] + chosen + pattern[choice.end() :])


def form_of(instruction: Instruction) -> Form:
    """Its entry; Fault where there is none."""
    form = TABLE.get(instruction.opcode)
    if form is None:
        raise Fault(f"instruction not known: {instruction.text}")
    if len(instruction.operands) not in form.operands:
        expected = " or ".join(map(str, sorted(form.operands)))
        raise Fault(
            f"{instruction.opcode}: expected {expected} operands, got {len(instruction.operands)}: {instruction.text}"
        )
    return form
