"""Checks of an option's value; what they raise names the option, what was expected and what came."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints


def require(condition: bool, field_name: str, expected: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{field_name}: expected {expected}, got {value!r}")


def require_type(field_name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{field_name}: expected {kind.__name__}, got {value!r}")


def require_choices(config: object, section: str) -> None:
    """Every field that is annotated as a Literal holds one of its values. section: "" of the whole config."""
    for name, choices in _choices(type(config)).items():  # type: ignore[arg-type]
        full = f"{section}.{name}" if section else name
        require(getattr(config, name) in choices, full, f"one of {choices}", getattr(config, name))


@cache  # reading annotations back takes longer than all other checks
def _choices(config: type) -> dict[str, tuple[Any, ...]]:
    """The values of each field that is annotated as a Literal."""
    hints = get_type_hints(config)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
