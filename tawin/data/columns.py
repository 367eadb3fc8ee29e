"""Columns of parquet files as numpy arrays, checked: whatever is refused is named by file and column.

What the columns mean is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

READ_BYTES = 2**20  # of a column are held at a time while a file is read in batches, however large its row groups are


class DataError(ValueError):
    """A data folder or file that cannot be used; the message names file and column, what was expected, what came."""


@contextmanager
def reading_parquet(path: Path) -> Iterator[None]:
    """What arrow cannot read is a DataError that names the file. Nothing is to be written in the block."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # names of columns may be no text
        raise DataError(f"{path}: expected a parquet file, got one that cannot be read: {error}") from error


class ParquetReader:
    """An open parquet file. What arrow cannot read is a DataError; an error of whoever works with it is not."""

    def __init__(self, path: Path, file: pq.ParquetFile) -> None:
        self._path, self._file = path, file
        self.schema_arrow: pa.Schema = file.schema_arrow
        self.metadata: pq.FileMetaData = file.metadata

    def read(self, columns: list[str]) -> pa.Table:
        with reading_parquet(self._path):
            return self._file.read(columns=columns)

    def iter_batches(self, rows: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        batches = self._file.iter_batches(rows, columns=columns)
        while True:
            with reading_parquet(self._path):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


@contextmanager
def open_parquet(path: Path, required: tuple[str, ...]) -> Iterator[ParquetReader]:
    """The file, if it has the required columns. DataError for what arrow cannot read."""
    if not path.is_file():
        raise DataError(f"{path}: expected a parquet file with the columns {', '.join(required)}, found no such file")
    with reading_parquet(path):
        # Arrow's pre_buffer keeps all that it has read until the end. Checksums are looked at where a file has them.
        file = pq.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False, page_checksum_verification=True)
    with file:
        with reading_parquet(path):
            reader = ParquetReader(path, file)
            names = reader.schema_arrow.names
        for column in required:
            if column not in names:
                raise DataError(f"{path}: column '{column}': expected, but the file has only {', '.join(names)}")
        yield reader


def read_table(path: Path, *, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> pa.Table:
    """These columns, in memory. DataError: see `open_parquet`, and for a column that has lost rows."""
    with open_parquet(path, required) as file:
        names = [*required, *(name for name in optional if name in file.schema_arrow.names)]
        table = pa.table({name: file.read(columns=[name])[name] for name in names})
        _require_rows(table.num_rows, file, ", ".join(names), path)
        return table


def _require_rows(found: int, file: ParquetReader, column: str, path: Path) -> None:
    """The header of a page has no checksum, and Arrow takes its word."""
    if found != file.metadata.num_rows:
        raise DataError(
            f"{path}: column '{column}': expected {file.metadata.num_rows} rows, as the file's footer says, got "
            f"{found}: the file is damaged"
        )


def optional_column(table: pa.Table, column: str) -> pa.ChunkedArray | None:
    """None where the column is absent or all null."""
    if column not in table.column_names or table[column].null_count == table.num_rows:
        return None
    return table[column]


def read_titles(table: pa.Table, path: Path) -> list[str | None] | None:
    column = optional_column(table, "title")
    if column is None:
        return None
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"{path}: column 'title': expected strings, got {column.type}")
    return column.to_pylist()


def read_source_ids(table: pa.Table, path: Path) -> list[str] | None:
    """The log's own ids as text: distinct, none missing. None where there is no such column."""
    column = optional_column(table, "source_id")
    if column is None:
        return None
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        raise DataError(f"{path}: column 'source_id': expected strings, got {kind}")
    _require_no_nulls(column.null_count, "source_id", path)
    repeated = [row["values"] for row in pc.value_counts(column).to_pylist() if row["counts"] > 1]
    if repeated:
        raise DataError(
            f"{path}: column 'source_id': expected each id once, but {len(repeated)} are repeated; "
            f"the first: {', '.join(map(str, repeated[:5]))}"
        )
    return column.cast(pa.string()).to_pylist()


def read_integers(table: pa.Table, column: str, path: Path) -> np.ndarray:
    values = table[column].combine_chunks()
    _require_integers(values, column, path)
    _require_no_nulls(values.null_count, column, path)
    return _int64(values, column, path)


def read_integer_lists(table: pa.Table, column: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """All values one after another, and how many belong to each row; both int64."""
    lists = table[column].combine_chunks()
    if len(lists) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    (whole,) = _integer_lists([lists], column, path)
    return whole


def read_integer_list_batches(path: Path, column: str, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same, for `rows` rows of the file at a time: what is held is one of these batches, not the file.

    DataError comes at once for a wrong type, and for nulls at the end, when all of them have been counted.
    """
    with open_parquet(path, (column,)) as file:
        found = 0
        parts = (batch.column(0) for batch in file.iter_batches(rows, columns=[column]))
        for values, lengths in _integer_lists(parts, column, path):
            found += len(lengths)
            yield values, lengths
        _require_rows(found, file, column, path)


def read_number_list_batches(path: Path, column: str, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Lists of numbers, as `read_integer_list_batches` reads those of integers: float32 values and int64 lengths."""
    with open_parquet(path, (column,)) as file:
        found = 0
        for batch in file.iter_batches(rows, columns=[column]):
            lists = batch.column(0)
            kind = lists.type.value_type if pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type) else None
            if kind is None or not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
                raise DataError(f"{path}: column '{column}': expected lists of numbers, got {lists.type}")
            values = lists.flatten()
            _require_no_nulls(lists.null_count + values.null_count, column, path)
            found += len(lists)
            lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
            yield values.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False), lengths
        _require_rows(found, file, column, path)


def _integer_lists(parts: Iterable[pa.Array], column: str, path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    null_lists = null_values = 0
    for lists in parts:
        kind = lists.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            raise DataError(f"{path}: column '{column}': expected lists of integers, got {kind}")
        values = lists.flatten()
        null_lists += lists.null_count
        null_values += values.null_count
        if null_lists == 0:
            _require_integers(values, column, path)
        if null_lists == null_values == 0:
            lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
            yield _int64(values, column, path), lengths
    if null_lists:
        raise DataError(f"{path}: column '{column}': expected a list in every row, got {null_lists} nulls")
    _require_no_nulls(null_values, column, path)


def _require_integers(values: pa.Array, column: str, path: Path) -> None:
    if not pa.types.is_integer(values.type) and len(values):
        raise DataError(f"{path}: column '{column}': expected integers, got {values.type}")


def _require_no_nulls(count: int, column: str, path: Path) -> None:
    if count:
        raise DataError(f"{path}: column '{column}': expected no nulls, got {count}")


def _int64(values: pa.Array, column: str, path: Path) -> np.ndarray:
    if len(values) == 0:  # of any type, also one that casts to no integers
        return np.zeros(0, dtype=np.int64)
    try:
        return values.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: column '{column}': expected 64-bit integers, got {values.type}: {error}") from error


def optional_array(values: list[Any] | None, rows: int, kind: pa.DataType) -> pa.Array:
    """A column for writing; all null where there are no values."""
    return pa.nulls(rows, kind) if values is None else pa.array(values, type=kind)


def require_distinct(ids: np.ndarray, column: str, path: Path) -> None:
    ordered = np.sort(ids)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(repeated):
        raise DataError(
            f"{path}: column '{column}': expected each id once, but {len(repeated)} are repeated; "
            f"the first: {', '.join(map(str, repeated[:5]))}"
        )


def integer_type(values: np.ndarray) -> pa.DataType:
    """The smaller of int32 and int64 that holds the values."""
    fits = len(values) == 0 or (values.min() >= -(2**31) and values.max() < 2**31)
    return pa.int32() if fits else pa.int64()
