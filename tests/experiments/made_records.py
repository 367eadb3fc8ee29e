"""Records made by hand: what a row's users find, seed by seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.plan import Row, Table
from experiments.store import Record
from tawin.metrics import ranking_metrics


def record(row: str, seed: int, ranks: Any, *, data: str = "office", table: str = "main", **fields: Any) -> Record:
    """A record whose users have these ranks on test, and the values that follow from them."""
    ranks = np.asarray(ranks, dtype=np.int32)
    values = {f"test {name}": value for name, value in ranking_metrics(ranks).items()}
    return Record(table, data, row, seed, {}, values, {"test": ranks}, **fields)


def table(*rows: str | Row, data: tuple[str, ...] = ("office",), **fields: Any) -> Table:
    """A table of these rows."""
    full = tuple(Row(row, "grpo", {}, data) if isinstance(row, str) else row for row in rows)
    return Table("main", "Main table", "What it asks.", data, full, **fields)


def sweep(option: str, *values: Any, data: tuple[str, ...] = ("office",)) -> list[Row]:
    """A row a value of an option."""
    return [Row(f"{option} {value}", "grpo", {}, data, {option: value}) for value in values]
