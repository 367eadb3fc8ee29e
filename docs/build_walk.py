"""The lines of the reader's walk in ARCHITECTURE.md, from the functions that it names: `python docs/build_walk.py`."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "ARCHITECTURE.md"
_STOP = re.compile(r"^(\| \d+ \| [^|]*\| `([^`]+)` `(\w+)` \|)[^|]*\|$", re.MULTILINE)


def lines_of(path: str, function: str) -> str:
    """First and last line of the one function of that name in a file. ValueError where there is not one."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function]
    if len(found) != 1:
        raise ValueError(f"{path}: expected one function {function}, found {len(found)}")
    return f"{found[0].lineno}-{found[0].end_lineno}"


def built(text: str) -> str:
    """The page with the lines of today."""
    return _STOP.sub(lambda stop: f"{stop[1]} {lines_of(stop[2], stop[3])} |", text)


def stops(text: str) -> int:
    return len(_STOP.findall(text))


if __name__ == "__main__":
    PAGE.write_text(built(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
