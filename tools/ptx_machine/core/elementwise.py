"""Steps of instructions that compute a value from values, each thread by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .operands import Operands
from .parse import Instruction
from .table import Step
from .values import Array, Mask

if TYPE_CHECKING:
    from .programs import Programs

Function = Callable[..., Array]


def elementwise(operands: Operands, x: Instruction, function: Function, types: Sequence[str], result: str) -> Step:
    """The first operand becomes `function` of the others, read as `types` and written as `result`."""
    texts = x.operands[1:]
    reads = [operands.read(text, type) for text, type in zip(texts, types, strict=True)]
    write = operands.write(x.operands[0], result)
    if len(reads) == 2:
        first, second = reads

        def of_two(programs: Programs, mask: Mask) -> None:
            registers = programs.registers
            write(programs, function(first(registers), second(registers)), mask)

        return of_two

    def step(programs: Programs, mask: Mask) -> None:
        registers = programs.registers
        write(programs, function(*[read(registers) for read in reads]), mask)

    return step
