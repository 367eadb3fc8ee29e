"""Whether the lanes of a warp end with the same bits of one sum: read in the PTX, for every kernel and NVIDIA target.

A sum over a warp is made by exchange: each lane adds its partner's value to its own (shfl.bfly). After five exchanges
all lanes have the sum, the same bits in each, as a + b is b + a. Where the values are products, l * u, LLVM may fuse
the first addition: fma(l, u, partner's). It rounds the partner's product and not its own, in each lane another one,
and the copies differ in last bits. Where copies meet, in one shared address, results depend on which comes last.
"""

from __future__ import annotations

import re

_INSTRUCTION = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z][\w.:]*)\s+([^;]*);")
_REGISTER = re.compile(r"%\w+")
_CARRIES = ("mov.", "cvt.", "neg.", "shl.", "or.")  # halves of fp64 are put together by the last two


def unequal_copies(ptx: str) -> list[str]:
    """The instructions that round what another lane sent and not the lane's own product.

    An fma whose addend was sent, or an addition of a product and of what was sent that the assembler may fuse.
    """
    found: list[str] = []
    sent: set[str] = set()
    products: set[str] = set()
    for line in ptx.splitlines():
        if (match := _INSTRUCTION.match(line)) is None:
            continue
        opcode, operands = match.groups()
        registers = _REGISTER.findall(operands)
        if not registers:
            continue
        targets, sources = _split(operands, registers)
        floats = re.search(r"\.(f16|bf16|f32|f64)(x2)?$", opcode) is not None
        if opcode.startswith("fma.") and operands.split(",")[-1].strip() in sent:
            found.append(f"{opcode} {operands}")
        reads_sent, reads_product = not sent.isdisjoint(sources), not products.isdisjoint(sources)
        if opcode.startswith("add.") and floats and ".rn" not in opcode and reads_sent and reads_product:
            found.append(f"{opcode} {operands}")
        carries = opcode.startswith("shfl.sync.bfly") or (opcode.startswith(_CARRIES) and reads_sent)
        (sent.update if carries else sent.difference_update)(targets)
        is_product = opcode.startswith("mul.") and floats and ".rn" not in opcode
        (products.update if is_product else products.difference_update)(targets)
    return found


def _split(operands: str, registers: list[str]) -> tuple[list[str], list[str]]:
    """Registers that an instruction writes, and those it reads. `shfl` also writes a predicate: value|predicate."""
    if operands.lstrip().startswith("{"):
        written = operands.count("%", 0, operands.index("}"))
        return registers[:written], registers[written:]
    return registers[:1], registers[1:]
