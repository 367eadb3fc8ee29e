"""What a catalogue says of its items beside ids and titles, and which items fit a condition on that.

`items.parquet` may have columns of any names: a category, a price, a date. They go with the items from `prepare` to
the run, and `recommend --where` narrows its search by them. Conditions are parsed here, by a small grammar, and
evaluated by `pyarrow.compute`: no text is ever run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .columns import open_parquet

OWN_COLUMNS = ("item_id", "source_id", "title", "semantic_id", "token_ids", "history_tokens")
"""Columns of items.parquet with a meaning of their own."""
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*')|(?P<quoted>"(?:[^"]|"")*")|(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"""
    r"""|(?P<sign><=|>=|!=|<>|==|=|<|>|\(|\)|,)|(?P<word>[^\W\d][\w.]*))"""
)
_WORDS = ("and", "or", "not", "in", "is", "null", "like", "true", "false")
_MOST_NESTED = 100


def read_item_columns(path: Path) -> pa.Table | None:
    """The columns of items.parquet that have no meaning of their own and are not nested; None where there is none."""
    with open_parquet(path, ()) as file:
        fields = [field for field in file.schema_arrow if field.name not in OWN_COLUMNS]
        names = [field.name for field in fields if not pa.types.is_nested(field.type)]
        return file.read(columns=names) if names else None


def arrays_of(columns: pa.Table | None) -> dict[str, pa.ChunkedArray]:
    """By name; none of None."""
    return {} if columns is None else dict(zip(columns.column_names, columns.columns, strict=True))


def matching(table: pa.Table, condition: str, where: str = "--where") -> np.ndarray:
    """The rows of a table that fit a condition: int64, ascending. A comparison with null fits never.

        category = 'shoes' and (price < 100 or brand in ('ours', 'theirs')) and not title like '%used%'

    Comparisons are = != < <= > >=, `in (...)`, `like` ('%' for any text, '_' for any character), `is null` and their
    `not`; a name that is no word stands in double quotes. A date or time is written as text: added >= '2026-01-31'.

    Raises:
        ValueError, which begins with `where`: what is no condition, a column that is not there, a value that does not
            suit its column, no row that fits.
    """
    try:
        fits = _Condition(table, condition).evaluate()
    except ValueError as error:
        raise ValueError(f"{where} {condition!r}: {error}") from None
    rows = np.flatnonzero(fits).astype(np.int64)
    if len(rows) == 0:
        raise ValueError(f"{where} {condition!r}: expected items that fit, got none of {table.num_rows:,}")
    return rows


class _Condition:
    """A recursive-descent parser that evaluates as it goes. A condition is bool [rows], null = unknown."""

    def __init__(self, table: pa.Table, text: str) -> None:
        self._table, self._tokens, self._place, self._depth = table, _tokens(text), 0, 0

    def evaluate(self) -> np.ndarray:
        found = self._either()
        if self._place < len(self._tokens):
            raise ValueError(f"expected its end or and, or, got {self._tokens[self._place][1]}")
        return np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False))

    def _either(self) -> Any:
        found = self._both()
        while self._takes("or"):
            found = pc.or_kleene(found, self._both())
        return found

    def _both(self) -> Any:
        found = self._one()
        while self._takes("and"):
            found = pc.and_kleene(found, self._one())
        return found

    def _one(self) -> Any:
        self._depth += 1
        if self._depth > _MOST_NESTED:
            raise ValueError(f"expected at most {_MOST_NESTED} nested conditions")
        if self._takes("not"):
            found = pc.invert(self._one())
        elif self._takes("("):
            found = self._either()
            self._needs(")")
        else:
            found = self._comparison()
        self._depth -= 1
        return found

    def _comparison(self) -> Any:
        name, column = self._column()
        if self._takes("is"):
            negated = self._takes("not")
            self._needs("null")
            return pc.is_valid(column) if negated else pc.is_null(column)
        negated = self._takes("not")
        if self._takes("in"):
            found = self._among(name, column)
        elif self._takes("like"):
            pattern = self._value()
            if not isinstance(pattern, str) or not pa.types.is_string(column.type):
                raise ValueError(f"column {name!r}: expected text and a pattern for like, got {column.type}")
            found = pc.match_like(column, pattern)
        else:
            sign = self._next("a comparison")
            if negated or sign not in _COMPARISONS:
                raise ValueError(f"column {name!r}: expected = != < <= > >= in like is, got {sign}")
            found = self._compare(name, column, sign, self._value())
        return pc.invert(found) if negated else found

    def _among(self, name: str, column: pa.Array) -> Any:
        self._needs("(")
        found = self._compare(name, column, "=", self._value())
        while self._takes(","):
            found = pc.or_kleene(found, self._compare(name, column, "=", self._value()))
        self._needs(")")
        return found

    def _compare(self, name: str, column: pa.Array, sign: str, value: str | float | bool) -> Any:
        try:
            scalar = pa.scalar(value)
            if pa.types.is_temporal(column.type):
                scalar = pa.scalar(str(value)).cast(column.type)
            elif isinstance(value, str) != pa.types.is_string(column.type):
                raise pa.ArrowInvalid("another type")
            return _COMPARISONS[sign](column, scalar)
        except (pa.ArrowException, pa.ArrowNotImplementedError):
            raise ValueError(f"column {name!r}: expected a value of its type, {column.type}, got {value!r}") from None

    def _column(self) -> tuple[str, pa.Array]:
        kind, text = self._tokens[self._place] if self._place < len(self._tokens) else ("end", "its end")
        name = text[1:-1].replace('""', '"') if kind == "quoted" else text
        if kind not in ("word", "quoted") or (kind == "word" and name.lower() in _WORDS):
            raise ValueError(f"expected the name of a column, got {text}")
        if name not in self._table.column_names:
            raise ValueError(f"expected a column of the items, {', '.join(self._table.column_names)}, got {name}")
        self._place += 1
        column = self._table[name].combine_chunks()
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return name, column.cast(pa.string()) if pa.types.is_large_string(column.type) else column

    def _value(self) -> str | float | bool:
        kind, text = self._tokens[self._place] if self._place < len(self._tokens) else ("end", "its end")
        self._place += 1
        if kind == "text":
            return text[1:-1].replace("''", "'")
        if kind == "number":
            return int(text) if text.lstrip("-").isdigit() else float(text)
        if kind == "word" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise ValueError(f"expected a number, true, false or text in single quotes, got {text}")

    def _takes(self, wanted: str) -> bool:
        """Whether the next token is this word or sign; then it is passed."""
        found = self._place < len(self._tokens) and self._tokens[self._place][1].lower() == wanted
        self._place += found
        return found

    def _needs(self, wanted: str) -> None:
        if not self._takes(wanted):
            raise ValueError(f"expected {wanted}, got {self._next(wanted)}")

    def _next(self, wanted: str) -> str:
        if self._place >= len(self._tokens):
            raise ValueError(f"expected {wanted}, got its end")
        self._place += 1
        return self._tokens[self._place - 1][1]


def _tokens(text: str) -> list[tuple[str, str]]:
    """Kind and text of each token."""
    found, place = [], 0
    end = len(text.rstrip())
    while place < end:
        token = _TOKEN.match(text, place)
        if token is None or token.lastgroup is None:
            raise ValueError(f"expected names, values and comparisons, got {text[place:].strip()[:20]!r}")
        found.append((token.lastgroup, token[token.lastgroup]))
        place = token.end()
    if not found:
        raise ValueError("expected a condition like category = 'shoes' and price < 100, got nothing")
    return found
