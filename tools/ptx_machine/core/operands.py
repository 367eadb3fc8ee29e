"""Operands of instructions as functions that read and write the registers of all threads."""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from .parse import Kernel, split_operands
from .values import DTYPE, UNSIGNED, WIDTH, Array, Fault, Mask

if TYPE_CHECKING:
    from .programs import Programs

Read = Callable[[list[Array]], Array]
"""The values of an operand, by the registers of all threads."""
Write = Callable[["Programs", Array, Mask], None]

SPECIAL = tuple(
    [f"{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"] + ["laneid", "warpid"]
)
_ADDRESS = re.compile(r"\[\s*(%?[\w$.]+)\s*(?:([+-])\s*(-?\w+))?\s*\]")
_SYMBOL = re.compile(r"([A-Za-z_$][\w$]*)(?:\+(\d+))?")


class Operands:
    """Where each operand of a kernel lies: registers first, then special registers, then constants."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.kinds = {**kernel.registers, **{f"%{name}": "b32" for name in SPECIAL}}
        self.index = {name: i for i, name in enumerate(self.kinds)}
        self.constants: list[Array] = []
        self._seen: dict[tuple[str, bytes], int] = {}

    def constant(self, value: Array) -> int:
        """The index of an array of one element."""
        key = value.dtype.str, value.tobytes()
        if key not in self._seen:
            self._seen[key] = len(self.kinds) + len(self.constants)
            self.constants.append(value)
        return self._seen[key]

    def read(self, text: str, type: str) -> Read:
        """As an array of the type's numpy dtype; wider registers are truncated."""
        dtype = DTYPE[type]
        if text in self.index:
            at, kind = self.index[text], self.kinds[text]
            if (kind == "pred") != (type == "pred"):
                raise Fault(f"{text} is {kind} and read as {type}")
            if WIDTH[kind] == WIDTH[type]:
                return itemgetter(at) if type[0] in "bup" else lambda registers: registers[at].view(dtype)
            unsigned = UNSIGNED[WIDTH[type]]
            return lambda registers: registers[at].astype(unsigned).view(dtype)
        at = self.constant(_literal(text, type, self.kernel.shared_symbols))
        return itemgetter(at)

    def reads(self, texts: list[str], type: str) -> Callable[[list[Array]], list[Array]]:
        each = [self.read(text, type) for text in texts]
        return lambda registers: [read(registers) for read in each]

    def predicate(self, text: str) -> Read:
        """A predicate, perhaps negated with "!"."""
        read = self.read(text.lstrip("!"), "pred")
        return (lambda registers: ~read(registers)) if text[0] == "!" else read

    def write(self, text: str, type: str) -> Write:
        """A function that puts an array of the type's dtype into a register; wider ones are extended by its sign."""
        if text == "_":
            return lambda programs, value, mask: None
        if text not in self.index:
            raise Fault(f"{text} is no register")
        at, kind = self.index[text], self.kinds[text]
        if (kind == "pred") != (type == "pred") or WIDTH[kind] < WIDTH[type]:
            raise Fault(f"{text} is {kind} and written as {type}")
        dtype = DTYPE[type]
        held: np.dtype[Any] = DTYPE[kind]
        wide = np.dtype(f"{dtype.kind}{held.itemsize}") if WIDTH[kind] > WIDTH[type] else None

        def write(programs: Programs, value: Array, mask: Mask) -> None:
            if value.dtype != dtype:
                value = value.astype(dtype)
            if wide is not None:
                value = value.astype(wide)
            if value.dtype != held:
                value = value.view(held)
            registers = programs.registers
            registers[at] = value if mask is None else np.where(mask, value, registers[at])

        return write

    def writes(self, texts: list[str], type: str) -> Callable[[Programs, list[Array], Mask], None]:
        each = [self.write(text, type) for text in texts]

        def write(programs: Programs, values: list[Array], mask: Mask) -> None:
            for put, value in zip(each, values, strict=True):
                put(programs, value, mask)

        return write

    def address(self, text: str, space: str) -> Read:
        """[register + offset] or [symbol + offset]: uint64, for shared memory uint32."""
        name, offset = address_of(text)
        type = "u64" if space == "global" else "u32"
        if name not in self.index:
            if space == "global":
                raise Fault(f"no register: {text}")
            return self.read(f"{name}+{offset}", type)
        base = self.read(name, type)
        if not offset:
            return base
        step = np.array([offset % 2 ** WIDTH[type]], DTYPE[type])
        return lambda registers: base(registers) + step


def address_of(text: str) -> tuple[str, int]:
    """The name and the offset of "[name + offset]"."""
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise Fault(f"no address: {text}")
    offset = int(found[3], 0) if found[3] else 0
    return found[1], -offset if found[2] == "-" else offset


def vector(text: str) -> list[str]:
    """The elements of "{a, b}", or the one operand."""
    return split_operands(text.strip()[1:-1]) if text.startswith("{") else [text]


def _literal(text: str, type: str, symbols: dict[str, int]) -> Array:
    """An array of one element."""
    dtype, width = DTYPE[type], WIDTH[type]
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        single = np.array([int(text[2:], 16)], np.uint32)
        return single.view(dtype) if width == 32 else single.view(np.float32).astype(dtype)
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        return np.array([int(text[2:], 16)], np.uint64).view(dtype)
    symbol = _SYMBOL.fullmatch(text)
    if symbol is not None and symbol[1] in symbols:
        return np.array([symbols[symbol[1]] + int(symbol[2] or 0)], dtype)
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        value = int(text.rstrip("U"), 0)
        return np.array([value != 0]) if type == "pred" else np.array([value % 2**width], UNSIGNED[width]).view(dtype)
    raise Fault(f"operand not known: {text}")
