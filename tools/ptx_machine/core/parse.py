"""PTX text to a list of instructions, with the registers, labels and shared symbols that they name.

Names and labels inside the braces of inline assembly are their own: they are renamed, `p` in the third pair of braces
to `p__3`. Declarations that are not understood are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from .values import WIDTH, Fault

_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{]*)\{", re.DOTALL)
_NAME = re.compile(r"%?[A-Za-z_$][\w$]*")
_LABEL = re.compile(r"([\w$]+):(?!:)")
_OPCODE = re.compile(r"[\w.:]+")
_BRACKETS = {"[": 1, "{": 1, "(": 1, "]": -1, "}": -1, ")": -1}


@dataclass(frozen=True)
class Instruction:
    opcode: str
    operands: tuple[str, ...]
    predicate: str | None
    negated: bool
    """Whether the predicate is."""
    line: int
    """Of the Python source, 0 where it is not known."""
    text: str

    @property
    def parts(self) -> list[str]:
        return self.opcode.split(".")

    @property
    def type(self) -> str:
        """The last type in the opcode: of the operands, for most."""
        return self.types[-1]

    @property
    def types(self) -> list[str]:
        return [part for part in self.parts if part in WIDTH]

    def has(self, modifier: str) -> bool:
        return modifier in self.parts


@dataclass
class Kernel:
    name: str
    parameters: list[tuple[str, str]]
    """(type, name), in order."""
    shared_symbols: dict[str, int]
    """Where each begins, in bytes."""
    static_shared: int
    registers: dict[str, str] = field(default_factory=dict)
    """"pred" or "b32", by name."""
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    """Which instruction follows the label."""


def split_operands(text: str) -> list[str]:
    """At the commas outside of brackets."""
    found, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += _BRACKETS.get(character, 0)
        if character == "," and depth == 0:
            found.append(text[start:at].strip())
            start = at + 1
    last = text[start:].strip()
    return [*found, last] if last else found


def parse(ptx: str) -> Kernel:
    """The one kernel of a module."""
    entries = list(_ENTRY.finditer(ptx))
    if len(entries) != 1 or re.search(r"^\s*(\.visible\s+)?\.func\b", ptx, re.MULTILINE):
        raise Fault(f"expected a module of one kernel and no functions, got {len(entries)} kernels")
    entry = entries[0]
    parameters = [_parameter(text) for text in split_operands(entry[2])]
    symbols = dict.fromkeys(re.findall(r"\.extern\s+\.shared[^;]*?(\w+)\[\]", ptx), 0)
    end = 0
    for alignment, name, size in re.findall(
        r"^\s*\.shared\s+\.align\s+(\d+)\s+\.b8\s+(\w+)\[(\d+)\]", ptx, re.MULTILINE
    ):
        symbols[name] = -(-end // int(alignment)) * int(alignment)
        end = symbols[name] + int(size)
    kernel = Kernel(entry[1], parameters, symbols, end)
    _Body(kernel).read(_body(ptx[entry.end() :]))
    return kernel


def _parameter(text: str) -> tuple[str, str]:
    found = re.search(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)", text)
    assert found is not None, text
    return found[1], re.sub(r"\[\d+\]$", "", text.split()[-1])


def _body(text: str) -> str:
    """Up to the closing brace of the kernel, without comments."""
    text = re.sub(r"//[^\n]*", "", text)
    depth = 1
    for brace in re.finditer(r"[{}]", text):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[: brace.start()]
    raise Fault("a kernel without an end")


@dataclass
class _Scope:
    """An open pair of braces."""

    number: int
    own: dict[str, str] = field(default_factory=dict)
    """The kernel's name for each name declared here."""

    def declare(self, name: str) -> str:
        self.own[name] = f"{name}__{self.number}"
        return self.own[name]


class _Body:
    """Reads statements into a kernel; knows the braces that are open."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.scopes: list[_Scope] = []
        self.opened = 0
        self.line = 0

    def read(self, text: str) -> None:
        branches: dict[int, list[str]] = {}  # what the label may be called, innermost first: it may come later
        instructions = self.kernel.instructions
        for statement in self._statements(text):
            if label := _LABEL.fullmatch(statement):
                name = self.scopes[-1].declare(label[1]) if self.scopes else label[1]
                self.kernel.labels[name] = len(instructions)
            elif statement.startswith(".reg"):
                self._declare(statement)
            elif statement.startswith("."):
                raise Fault(f"declaration not known: {statement}")
            else:
                instruction = self._instruction(statement)
                if instruction.parts[0] == "bra":
                    label_text = statement.split()[-1]
                    names = [f"{label_text}__{scope.number}" for scope in reversed(self.scopes)]
                    branches[len(instructions)] = [*names, label_text]
                instructions.append(instruction)
        for at, names in branches.items():
            known = [name for name in names if name in self.kernel.labels]
            if not known:
                raise Fault(f"no such label: {instructions[at].text}")
            instructions[at] = replace(instructions[at], operands=(known[0],))

    def _statements(self, text: str) -> Iterator[str]:
        """Statements without their semicolons, and labels; braces and lines of the source are kept account of."""
        begun = ""
        for line in text.splitlines():
            line = line.strip()
            if line.startswith(".loc") and line[4].isspace():
                self.line = int(line.split()[2])
                continue
            if line.startswith((".pragma", ".file", ".section")):
                continue
            while line:
                if not begun and line[0] in "{}":
                    self._brace(line[0])
                    line = line[1:].lstrip()
                elif not begun and (label := _LABEL.match(line)):
                    yield label[0]
                    line = line[label.end() :].lstrip()
                elif (end := line.find(";")) >= 0:
                    statement = f"{begun} {line[:end]}".strip()
                    begun, line = "", line[end + 1 :].lstrip()
                    if statement:
                        yield statement
                else:
                    begun, line = f"{begun} {line}".strip(), ""

    def _brace(self, brace: str) -> None:
        if brace == "{":
            self.opened += 1
            self.scopes.append(_Scope(self.opened))
        elif self.scopes:
            self.scopes.pop()
        else:
            raise Fault("a closing brace too many")

    def _declare(self, statement: str) -> None:
        found = re.fullmatch(r"\.reg\s*\.(\w+)\s+(.*)", statement, re.DOTALL)
        if found is None or found[1] not in WIDTH:
            raise Fault(f"declaration not known: {statement}")
        kind = "pred" if found[1] == "pred" else f"b{WIDTH[found[1]]}"
        for name in split_operands(found[2]):
            several = re.fullmatch(r"(%?[\w$]+)<(\d+)>", name)
            for each in [f"{several[1]}{i}" for i in range(int(several[2]))] if several else [name]:
                self.kernel.registers[self.scopes[-1].declare(each) if self.scopes else each] = kind

    def _renamed(self, text: str) -> str:
        for scope in reversed(self.scopes):
            if scope.own:
                text = _NAME.sub(lambda name, own=scope.own: own.get(name[0], name[0]), text)  # type: ignore[misc]
        return text

    def _instruction(self, statement: str) -> Instruction:
        rest, predicate, negated = statement, None, False
        if rest[0] == "@":
            guard, rest = rest[1:].split(None, 1)
            negated = guard[0] == "!"
            predicate = self._renamed(guard.lstrip("!"))
        opcode = _OPCODE.match(rest)
        if opcode is None:
            raise Fault(f"no instruction: {statement}")
        operands = split_operands(rest[opcode.end() :])
        if self.scopes:
            operands = [self._renamed(operand) for operand in operands]
        return Instruction(opcode[0], tuple(operands), predicate, negated, self.line, statement)
