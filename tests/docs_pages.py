"""README and the pages of docs/, and what is code in them. Knows nothing of what it takes to run it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}

STORIES = {"docs/PRETRAINED.md", "docs/TUTORIAL.md"}
"""Pages whose snippets work on what the commands before them made."""

SMALL = (
    *("--catalog.codes=8", "--policy.hidden-size=16", "--policy.layers=1", "--policy.heads=2"),
    *("--policy.intermediate-size=24", "--sft.epochs=1", "--sft.batch-size=32"),
    *("--grpo.steps=2", "--grpo.batch-size=16", "--grpo.group-size=6"),
    *("--evaluation.beam-width=12", "--evaluation.valid-users=20", "--evaluation.test-users=40"),
)
"""Options that make a command of a page a matter of seconds."""


@dataclass(frozen=True)
class Snippet:
    """A fenced block of Python."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def run(self) -> None:
        """Runs it. What it says to be "as in docs/PAGE.md" comes from that page's first snippet."""
        namespace = {"__name__": "snippet"}
        elsewhere = re.search(r"as in (docs/\w+\.md)", self.text)
        for snippet in ([snippets(elsewhere.group(1))[0]] if elsewhere else []) + [self]:
            lines = "\n" * (snippet.line - 1)  # so that a traceback names the page's own line
            exec(compile(lines + snippet.text, snippet.page, "exec"), namespace)


@dataclass(frozen=True)
class Command:
    """One command of a fenced block of bash, its words as a shell would have them."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(page: str, language: str) -> list[tuple[int, str]]:
    """(line, text) of each fenced block of a language."""
    text = PAGES[page]
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, block.start()) + 2, block.group(1)) for block in found]


def snippets(page: str) -> list[Snippet]:
    return [Snippet(page, line, text) for line, text in blocks(page, "python")]


def commands(page: str) -> list[Command]:
    """In the order of the page; what stands behind && is a command of its own, comments are none."""
    return [command for _, text in blocks(page, "bash") for command in commands_of(page, text)]


def code(page: str) -> list[Snippet | Command]:
    """Snippets and commands in the order of the page."""
    found = [(snippet.line, [snippet]) for snippet in snippets(page)]
    found += [(line, commands_of(page, text)) for line, text in blocks(page, "bash")]
    return [each for _, several in sorted(found, key=lambda block: block[0]) for each in several]


def commands_of(page: str, text: str) -> list[Command]:
    """The commands of a block of bash; ValueError where a shell would pipe or redirect one."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        words = shlex.split(line, comments=True)
        signs = {word for word in shlex.shlex(line, posix=True, punctuation_chars=True) if set(word) <= set("|;&<>()")}
        if signs - {"&&"}:
            raise ValueError(f"{page}: expected one command a line for {line!r}, got a shell's {sorted(signs)}")
        while "&&" in words:
            found.append(Command(page, tuple(words[: words.index("&&")])))
            words = words[words.index("&&") + 1 :]
        if words:
            found.append(Command(page, tuple(words)))
    return found
