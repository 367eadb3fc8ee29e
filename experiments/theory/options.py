"""Options of a check: a frozen dataclass from the mapping that a table's YAML gives."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

Kind = TypeVar("Kind")


def read(kind: type[Kind], options: dict[str, Any]) -> Kind:
    """`options` over the defaults of the dataclass `kind`; lists become tuples.

    Raises:
        ValueError: an option that the dataclass does not have.
        TypeError: an option whose value is of another type than the default's; an int passes for a float.
    """
    defaults = {field.name: field.default for field in fields(kind)}  # type: ignore[arg-type]
    found = {}
    for name, value in options.items():
        if name not in defaults:
            raise ValueError(f"options: expected names among {sorted(defaults)}, got {name!r}")
        value = tuple(value) if isinstance(value, list) else value
        expected = (int, float) if isinstance(defaults[name], float) else type(defaults[name])
        if isinstance(value, bool) or not isinstance(value, expected):
            raise TypeError(f"{name}: expected a value like the default {defaults[name]!r}, got {value!r}")
        found[name] = value
    return kind(**found)


def require(condition: bool, name: str, expected: str, value: object) -> None:
    """ValueError that names the option, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
