"""The lines of the reader's walk in ARCHITECTURE.md, from the functions that it names: `python docs/build_walk.py`."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "ARCHITECTURE.md"
_STOP = re.compile(r"^(\| \d+ \| [^|]*\| `([^`]+)` `(\w+)` \|)[^|]*\|$", re.MULTILINE)


def lines_of(path: str, function: str) -> tuple[int, int]:
    """First and last line of the one function of that name in a file. ValueError where there is not one."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function]
    if len(found) != 1:
        raise ValueError(f"{path}: expected one function {function}, found {len(found)}")
    assert found[0].end_lineno is not None
    return found[0].lineno, found[0].end_lineno


def built(text: str) -> str:
    """The page with the lines of today."""

    def line(stop: re.Match[str]) -> str:
        first, last = lines_of(stop[2], stop[3])
        return f"{stop[1]} {first}-{last} |"

    return _STOP.sub(line, text)


def stops(text: str) -> list[tuple[str, str, int, int]]:
    """Path, function, first and last line of every stop, as the page has them."""
    found = []
    for stop in _STOP.finditer(text):
        first, last = stop[0].rsplit("|", 2)[1].split("-")
        found.append((stop[2], stop[3], int(first), int(last)))
    return found


if __name__ == "__main__":
    PAGE.write_text(built(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
