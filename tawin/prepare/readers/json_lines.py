"""Files of one JSON object a line."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..ids import MissingError
from .lines import FileCount, Reading


def read_objects(reading: Reading, path: Path) -> Iterator[tuple[FileCount, int, dict[str, Any]]]:
    """The file's account, a line's number and its object; a line that is no object is malformed.

    A line that begins as a Python dict does, as those of Amazon's metadata of 2014 do, is read as that.
    """
    for count, number, text in reading.lines(path):
        try:
            # literal_eval knows literals only: nothing is run.
            found = ast.literal_eval(text.strip()) if text.startswith("{'") else json.loads(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            reading.report(count, number, f"expected a JSON object, got none: {error}")
            continue
        if isinstance(found, dict):
            yield count, number, found
        else:
            reading.report(count, number, f"expected a JSON object, got a {type(found).__name__}")


def text_field(record: dict[str, Any], what: str, name: str) -> str:
    """A field that is an id, of a user or an item (`what`).

    Raises:
        MissingError: it is null.
        ValueError: it is missing or no id.
    """
    if name not in record:
        raise ValueError(f"expected {name!r}, got none")
    value = record[name]
    if value is None or value != value:
        raise MissingError(what)
    if type(value) is int or (type(value) is float and value.is_integer() and abs(value) < 2**53):
        return str(int(value))
    if not isinstance(value, str):
        raise ValueError(f"expected {name!r}, got {value!r}"[:120])
    return value.strip()
