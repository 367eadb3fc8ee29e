"""A parsed kernel as basic blocks of steps, each a Python function that runs one instruction for many threads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .operands import Operands, Read, vector
from .parse import Instruction, Kernel
from .table import Step, form_of
from .values import WIDTH, Array, Fault, Mask

if TYPE_CHECKING:
    from .programs import Programs

DONE = -1  # in place of a block's number
_CONTROL = {"bra": 1, "bra.uni": 1, "ret": 0, "exit": 0, "bar.sync": 1, "barrier.sync": 1, "trap": 0}


@dataclass(frozen=True)
class Block:
    """Instructions that threads run one after another, and where they go from there."""

    steps: tuple[tuple[int, Step], ...]
    """Each with the number of its instruction."""
    counts: Counter[str]
    """How often each opcode stands in it, its end included."""
    together: int
    """How many neighbouring threads must be there before any goes on: 1, 32 or 128."""
    next: int
    branch: tuple[Read, int] | None = None
    """Threads for which it holds go there instead."""
    is_barrier: bool = False
    """Threads go on when their whole program is there."""


@dataclass(frozen=True)
class Translated:
    """What is run. The last fields are what the batches of programs are made by."""

    name: str
    instructions: tuple[Instruction, ...]
    blocks: tuple[Block, ...]
    first_instructions: tuple[int, ...]
    parameters: tuple[tuple[str, str], ...]
    registers: dict[str, str]
    constants: tuple[Array, ...]
    static_shared: int
    grain: int
    """Bytes of the smallest access to shared memory."""
    uses_tensor_memory: bool


def translate(kernel: Kernel) -> Translated:
    """Fault where an instruction is not in the table."""
    instructions = kernel.instructions
    starts = {0, *kernel.labels.values()}
    starts |= {i + 1 for i, instruction in enumerate(instructions) if instruction.opcode in _CONTROL}
    first = sorted(start for start in starts if start < len(instructions))
    number_of = {start: number for number, start in enumerate(first)}
    number_of[len(instructions)] = DONE
    operands = Operands(kernel)
    blocks = []
    for start, end in zip(first, [*first[1:], len(instructions)], strict=True):
        blocks.append(_block(kernel, operands, number_of, start, end))
    return Translated(
        name=kernel.name,
        instructions=tuple(instructions),
        blocks=tuple(blocks),
        first_instructions=tuple(first),
        parameters=tuple(kernel.parameters),
        registers=kernel.registers,
        constants=tuple(operands.constants),
        static_shared=kernel.static_shared,
        grain=min((_shared_bytes(instruction) for instruction in instructions), default=16),
        uses_tensor_memory=any(instruction.opcode.startswith("tcgen05") for instruction in instructions),
    )


def _block(kernel: Kernel, operands: Operands, number_of: dict[int, int], start: int, end: int) -> Block:
    steps: list[tuple[int, Step]] = []
    together = 1
    for at in range(start, end):
        instruction = kernel.instructions[at]
        if instruction.opcode in _CONTROL:
            break
        form = form_of(instruction)
        together = max(together, form.together)
        steps.append((at, _guarded(form.build(operands, instruction), operands, instruction)))
    counts = Counter(instruction.opcode for instruction in kernel.instructions[start:end])
    last = kernel.instructions[end - 1]
    following = number_of[end]
    if last.opcode not in _CONTROL:
        return Block(tuple(steps), counts, together, following)
    if len(last.operands) != _CONTROL[last.opcode]:
        raise Fault(f"operands of {last.text}")
    if last.opcode == "trap":
        steps.append((end - 1, _guarded(_trap, operands, last)))
        return Block(tuple(steps), counts, together, following)
    if last.opcode in ("bar.sync", "barrier.sync"):
        if last.predicate is not None or last.operands != ("0",):
            raise Fault(f"barrier not known: {last.text}")
        return Block(tuple(steps), counts, together, following, is_barrier=True)
    target = number_of[kernel.labels[last.operands[0]]] if last.opcode.startswith("bra") else DONE
    if last.predicate is None:
        return Block(tuple(steps), counts, together, target)
    return Block(tuple(steps), counts, together, following, branch=(_condition(operands, last), target))


def _condition(operands: Operands, instruction: Instruction) -> Read:
    assert instruction.predicate is not None
    return operands.predicate(("!" if instruction.negated else "") + instruction.predicate)


def _guarded(step: Step, operands: Operands, instruction: Instruction) -> Step:
    """The step, for the threads whose predicate holds."""
    if instruction.predicate is None:
        return step
    condition = _condition(operands, instruction)

    def guarded(programs: Programs, mask: Mask) -> None:
        active = programs.narrowed(mask, condition(programs.registers))
        if active is None or not isinstance(active, bool):
            step(programs, active)

    return guarded


def _trap(programs: Programs, mask: Mask) -> None:
    raise Fault("trap")


def _shared_bytes(instruction: Instruction) -> int:
    """Of one thread's access to shared memory; 16 if there is none."""
    opcode = instruction.opcode
    if opcode.startswith(("ld.shared", "st.shared")):
        values = instruction.operands[0 if opcode.startswith("ld") else 1]
        return min(16, WIDTH[instruction.type] // 8 * len(vector(values)))
    if opcode.startswith(("cp.async.ca", "cp.async.cg")):
        return int(instruction.operands[2], 0)
    if opcode.startswith(("wgmma.mma", "tcgen05.alloc")):
        return 4
    return 16
