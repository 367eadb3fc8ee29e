"""Configs as YAML files and mappings: written, read, changed, compared; they know the options as dataclasses alone."""

from __future__ import annotations

import contextlib
import dataclasses
import reprlib
from pathlib import Path
from typing import Any

import yaml

from . import Config
from .retired import RETIRED, set_otherwise, warn_of


def dump_yaml(config: Config) -> str:
    """The config as YAML, one field a line, in the order of the dataclasses."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def load_yaml(path: Path, base: Config | None = None) -> Config:
    """A config from a YAML file; fields that it leaves out come from `base` (default: the defaults).

    Raises ValueError that names the file and the unknown field, wrong type or value out of range.
    """
    return with_options(base or Config(), _mapping(path), str(path))


def _mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of options, got {type(values).__name__}")
    return values


def with_options(config: Config, values: dict[str, Any], source: str) -> Config:
    """The config with some of its options changed: a mapping as in the YAML; `source` is named in a ValueError."""
    return _updated(config, values, source, "")


def _updated(section: Any, values: dict[str, Any], source: str, prefix: str) -> Any:
    fields = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
    changes: dict[str, Any] = {}
    for name, value in values.items():
        full = f"{prefix}{name}"
        if full in RETIRED:
            warn_of(source, full, value)
            continue
        if name not in fields:
            raise ValueError(f"{source}: unknown option {full!r}; expected one of {sorted(fields)}")
        old = fields[name]
        if dataclasses.is_dataclass(old):
            if not isinstance(value, dict):
                raise ValueError(f"{source}: {full}: expected a mapping of options, got {reprlib.repr(value)}")
            changes[name] = _updated(old, value, source, f"{full}.")
        else:
            changes[name] = _typed(type(section), name, value, f"{source}: {full}")
    try:
        return dataclasses.replace(section, **changes)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source}: {error}") from None


def _typed(section: type, name: str, value: Any, where: str) -> Any:
    """Check a YAML value against the field's annotation; where a float is wanted, 1 and '1e-5' will do."""
    hints = {
        "int": (int,),
        "float": (float, int),
        "bool": (bool,),
        "str": (str,),
        "str | None": (str, type(None)),
        "int | None": (int, type(None)),
        "float | None": (float, int, type(None)),
    }
    annotation = {f.name: f.type for f in dataclasses.fields(section)}[name]
    # What is left is a Literal of strings, checked by the dataclass; YAML 1.1 reads yes and no as booleans.
    expected = hints.get(str(annotation), (str, bool) if "'yes'" in str(annotation) else (str,))
    if str(annotation).startswith("tuple"):  # of choices, which the dataclass checks
        if not (isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)):
            raise ValueError(f"{where}: expected a list of names, got {reprlib.repr(value)}")
        return tuple(value)
    is_float = annotation in ("float", "float | None")
    if is_float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML 1.1 reads 1e-5 as a string
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        # A few lines of YAML can name a value that is gigabytes of text.
        raise ValueError(f"{where}: expected {annotation}, got {reprlib.repr(value)}")
    return float(value) if isinstance(value, int) and is_float else value


def differences_of_run(path: Path, new: Config) -> list[tuple[str, Any, Any]]:
    """As `differences`, of the config in a run's config.yaml, the retired options that it set otherwise included."""
    return [*differences(load_yaml(path), new), *set_otherwise(_mapping(path))]


def differences(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """Fields in which two configs differ: (dotted name, old value, new value)."""
    return list(_walk_differences(dataclasses.asdict(old), dataclasses.asdict(new), ""))


def _walk_differences(old: dict[str, Any], new: dict[str, Any], prefix: str) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for name in old:
        if isinstance(old[name], dict):
            found += _walk_differences(old[name], new[name], f"{prefix}{name}.")
        elif old[name] != new[name]:
            found.append((f"{prefix}{name}", old[name], new[name]))
    return found
