"""A table of experiments: read from its YAML, sweeps expanded to rows, checked. Knows nothing of how a cell is run.

title, about:   text of the report
base:           another YAML of this folder whose options and data_options come first
data:           data sets of the table; a row may name fewer
options:        options of the trainer (the fields of tawin.config.Config) for all rows
data_options:   the same by data set, on top
rows:           name, method (experiments.methods), options (on top again; for methods that are not the trainer, their
                own), and sweep: {option: [values]}, which makes a row a combination, `{}` in its name standing for the
                values. Beside the trainer's options: sdpo (experiments.sdpo), exact: {users: N}, for exact figures
                of so many users, and probes: false, to leave out the figures of RL's own prompts and last weights
baseline:       the row that the others are tested against; a row may name one of its own
metrics:        what the report shows
figures:        what it draws (experiments.figures, and theory's), each perhaps with a caption
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "tables"
DATA = ("toys", "yelp", "industrial", "office", "synthetic")
TRAINED = ("sft", "grpo", "sdpo")  # methods whose options are the trainer's
_TABLE_FIELDS = {
    "title", "about", "base", "data", "options", "data_options", "rows", "baseline", "metrics", "figures",
}  # fmt: skip
_ROW_FIELDS = {"name", "method", "options", "sweep", "data", "baseline"}


@dataclass(frozen=True)
class Row:
    """One way of doing it."""

    name: str
    method: str
    options: dict[str, Any]
    """Nested as in the YAML; those of a sweep are among them."""
    data: tuple[str, ...]
    swept: dict[str, Any] = field(default_factory=dict)
    """Dotted option -> value, of a row that a sweep made."""
    baseline: str | None = None
    """The row that this one is tested against; None: the table's."""


@dataclass(frozen=True)
class Table:
    """A question, and the rows that answer it."""

    name: str
    title: str
    about: str
    data: tuple[str, ...]
    rows: tuple[Row, ...]
    options: dict[str, Any] = field(default_factory=dict)
    data_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    baseline: str | None = None
    metrics: tuple[str, ...] = ("recall@1", "recall@3", "recall@5", "recall@10")
    figures: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Cell:
    """A row of a table on a data set with a seed."""

    table: str
    row: Row
    data: str
    seed: int
    options: dict[str, Any]
    """The table's options, the data set's and the row's, merged; of the first two only `evaluation` where the row's
    method is not the trainer's."""


def table_names() -> list[str]:
    """The tables that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "base")


def load_table(name: str) -> Table:
    """The table of that name, or of a YAML file by its path.

    Raises:
        ValueError: no such table, unknown or missing fields, two rows of one name, data sets that do not exist.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"table: expected one of {table_names()} or a YAML file, got {name!r}")
    found = _read(path)
    _require_fields(found, _TABLE_FIELDS, {"title", "data", "rows"}, str(path))
    base: dict[str, Any] = {}
    if "base" in found:
        base_path = path.parent / found["base"]
        base = _read(base_path)
        _require_fields(base, {"options", "data_options"}, set(), str(base_path))
    data = tuple(found["data"])
    rows = tuple(row for entry in found["rows"] for row in _rows(entry, data, str(path)))
    names = [row.name for row in rows]
    for row in rows:
        if names.count(row.name) > 1:
            raise ValueError(f"{path}: rows: expected distinct names, got {row.name!r} twice")
    for where, sets in (("data", data), *((f"rows: {row.name}: data", row.data) for row in rows)):
        unknown = set(sets) - set(DATA)
        if unknown:
            raise ValueError(f"{path}: {where}: expected data sets among {DATA}, got {sorted(unknown)}")
    for baseline in (found.get("baseline"), *(row.baseline for row in rows)):
        if baseline not in (None, *names):
            raise ValueError(f"{path}: baseline: expected one of the rows {names}, got {baseline!r}")
    own = found.get("data_options", {})
    return Table(
        name=path.stem,
        title=found["title"],
        about=found.get("about", "").strip(),
        data=data,
        rows=rows,
        options=merge(base.get("options", {}), found.get("options", {})),
        data_options={each: merge(base.get("data_options", {}).get(each, {}), own.get(each, {})) for each in data},
        baseline=found.get("baseline"),
        **{name: tuple(found[name]) for name in ("metrics", "figures") if name in found},
    )


def cells(table: Table, seeds: list[int], data: list[str] | None = None) -> Iterator[Cell]:
    """The table's cells, seed by seed, so that what is there when a run is stopped is a whole table of fewer seeds."""
    for seed in seeds:
        for each in table.data:
            if data is not None and each not in data:
                continue
            for row in table.rows:
                if each not in row.data:
                    continue
                common = merge(table.options, table.data_options.get(each, {}))
                if row.method not in TRAINED:  # of the trainer's options only how all are evaluated
                    common = {name: value for name, value in common.items() if name == "evaluation"}
                yield Cell(table.name, row, each, seed, merge(common, row.options))


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Nested options, the second's on top."""
    merged = dict(first)
    for name, value in second.items():
        old = merged.get(name)
        merged[name] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _rows(entry: Any, data: tuple[str, ...], where: str) -> Iterator[Row]:
    entry = _mapping(entry, f"{where}: rows")
    where = f"{where}: rows: {entry.get('name', entry)}"
    _require_fields(entry, _ROW_FIELDS, {"name", "method"}, where)
    options, own = entry.get("options") or {}, tuple(entry.get("data", data))
    sweep = _mapping(entry.get("sweep") or {}, f"{where}: sweep")
    for values in itertools.product(*sweep.values()):
        swept = dict(zip(sweep, values, strict=True))
        name = entry["name"].format(*values)
        all_options = options
        for option, value in swept.items():
            all_options = merge(all_options, _nested(option, value))
        yield Row(name, entry["method"], all_options, own, swept, entry.get("baseline"))


def _nested(option: str, value: Any) -> dict[str, Any]:
    for part in reversed(option.split(".")):
        value = {part: value}
    return value


def _read(path: Path) -> dict[str, Any]:
    try:
        return _mapping(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: expected a table in YAML: {error}") from None


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a mapping, got {value!r}")
    return value


def _require_fields(found: dict[str, Any], allowed: set[str], needed: set[str], where: str) -> None:
    unknown, missing = found.keys() - allowed, needed - found.keys()
    if unknown or missing:
        raise ValueError(
            f"{where}: expected the fields {sorted(allowed)}, got unknown {sorted(unknown)}, missing {sorted(missing)}"
        )
