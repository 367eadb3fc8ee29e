"""catalog.json: the tokens of a saved catalogue that are no item's.

Version 2. Version 1 had neither separator, suffix nor empty: there the prefix was all that stood around items.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..data.columns import DataError
from ..run.atomic import write_atomically

FORMAT = 2
HEADER = ("prefix", "separator", "suffix", "empty", "pad_token", "end_token")
_LISTS = {"prefix": 1, "separator": 0, "suffix": 0, "empty": 1}  # and how many tokens they have at least


def write_header(path: Path, values: dict[str, Any]) -> None:
    """`values` by the names in HEADER; the file appears whole or not at all."""
    write_atomically(path, json.dumps({"format": FORMAT, **values}) + "\n")


def read_header(path: Path) -> dict[str, Any]:
    """The values by their names, lists as tuples; DataError for what `write_header` does not write."""
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected the JSON file that Catalog.save writes, cannot read it: {error}") from error
    if isinstance(header, dict) and header.get("format") == 1 and not {"separator", "suffix", "empty"} & set(header):
        header = {**header, "format": FORMAT, "separator": [], "suffix": [], "empty": header.get("prefix")}
    if not isinstance(header, dict) or set(header) != {"format", *HEADER} or header["format"] != FORMAT:
        raise DataError(f"{path}: expected the keys {sorted(('format', *HEADER))} with format {FORMAT}, got {header}")
    values = {name: header[name] for name in HEADER}
    for name, value in values.items():
        if name in _LISTS:
            if not (isinstance(value, list) and len(value) >= _LISTS[name] and all(map(_is_token, value))):
                needed = "a list of at least one token" if _LISTS[name] else "a list of tokens"
                raise DataError(f"{path}: {name}: expected {needed} in [0, 2 ** 31), got {value!r}")
            values[name] = tuple(value)
        elif not (_is_token(value) or (value is None and name == "end_token")):
            raise DataError(
                f"{path}: expected tokens in [0, 2 ** 31) as pad_token and end_token (or null), got {header}"
            )
    return values


def _is_token(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31
