"""Parquet of (user, item, time), whatever the columns are called; rows are counted where other files have lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..columns import DataError, ParquetReader, open_parquet, reading_parquet
from .delimited import find_column
from .log import Log
from .reading import Reading
from .source import Columns, Format, Item, Options, require_file
from .table import OF_ITEMS, USUAL, Places, read_item_table, table_files
from .times import TimeReader

BATCH_ROWS = 2**16


@dataclass(frozen=True)
class ParquetTable:
    files: tuple[Path, ...]
    items: Path | None
    columns: Columns

    def read_log(self, reading: Reading, log: Log) -> None:
        times = TimeReader(self.columns.time_unit)
        for path in self.files:
            count = reading.start(path, "row")
            with open_parquet(path, ()) as file:
                schema = file.schema_arrow
                places = Places.find(schema.names, self.columns, log.wants_rating, path)
                is_time = places.time is not None and _is_time(schema.field(places.time), path)
                reader = TimeReader("ms") if is_time else times
                for row in _rows(reading, file, path, places):
                    count.lines += 1
                    try:
                        _add(log, reader, row, has_time=places.time is not None)
                    except ValueError as error:
                        reading.report(count, count.lines, str(error))
            reading.finish(count)

    def read_items(self, reading: Reading) -> Iterator[Item]:
        if self.items is None:
            return
        if self.items.suffix != ".parquet":
            yield from read_item_table(reading, self.items, self.columns)
            return
        count = reading.start(self.items, "row")
        with open_parquet(self.items, ()) as file:
            header = file.schema_arrow.names
            item = find_column(header, None, OF_ITEMS, "item", self.items)
            title = find_column(header, self.columns.title, USUAL["title"], "title", self.items)
            if item is None or title is None:
                raise DataError(f"{self.items}: expected columns for item and title, got {', '.join(header)}")
            for batch in _batches(reading, file, self.items, [header[item], header[title]]):
                with reading_parquet(self.items):
                    ids = _ids(batch[header[item]], header[item], self.items)
                    texts = batch[header[title]].to_pylist()
                for source_id, text in zip(ids, texts, strict=True):
                    count.lines += 1
                    if source_id:
                        yield Item(source_id.strip(), text if isinstance(text, str) else None)
                    else:
                        reading.report(count, count.lines, "expected an item, got null")
        reading.finish(count)


def _rows(
    reading: Reading, file: ParquetReader, path: Path, places: Places
) -> Iterator[tuple[str | None, str | None, Any, Any]]:
    """User, item, time and rating; None where there is no such column, or null."""
    header = file.schema_arrow.names
    user, item = header[places.user], header[places.item]
    time = None if places.time is None else header[places.time]
    rating = None if places.rating is None else header[places.rating]
    for batch in _batches(reading, file, path, [user, item, time, rating]):
        nothing = [None] * len(batch[user])
        with reading_parquet(path):  # text that is none, points in time that no millisecond holds
            columns = (
                _ids(batch[user], user, path),
                _ids(batch[item], item, path),
                nothing if time is None else _times(batch[time]),
                nothing if rating is None else batch[rating].to_pylist(),
            )
        yield from zip(*columns, strict=True)


def _add(log: Log, times: TimeReader, row: tuple[str | None, str | None, Any, Any], *, has_time: bool) -> None:
    user, item, time, rating = row
    if has_time and time is None:
        raise ValueError("expected a time, got null")
    log.add((user or "").strip(), (item or "").strip(), times.read(time) if has_time else None, rating)


def _batches(
    reading: Reading, file: ParquetReader, path: Path, columns: list[str | None]
) -> Iterator[dict[str, pa.Array]]:
    names = list(dict.fromkeys(name for name in columns if name is not None))
    size, rows = path.stat().st_size, max(1, file.metadata.num_rows)
    with reading.bar(path) as bar:
        for batch in file.iter_batches(BATCH_ROWS, columns=names):
            yield dict(zip(batch.schema.names, batch.columns, strict=True))
            bar.update(size * batch.num_rows // rows)


def _ids(values: pa.Array, name: str, path: Path) -> list[str | None]:
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{path}: column '{name}': expected ids, strings or integers, got {values.type}")
    return pc.cast(values, pa.string()).to_pylist()


def _is_time(field: pa.Field, path: Path) -> bool:
    """Whether the column has points in time or dates. DataError for a time of day or a duration."""
    if pa.types.is_temporal(field.type) and not (pa.types.is_timestamp(field.type) or pa.types.is_date(field.type)):
        raise DataError(f"{path}: column '{field.name}': expected points in time, got {field.type}")
    return pa.types.is_temporal(field.type)


def _times(values: pa.Array) -> list[Any]:
    """Points in time and dates as milliseconds since 1970, anything else as it is."""
    if pa.types.is_temporal(values.type):
        # A finer unit is cut off; a coarser one may not fit, which arrow refuses.
        is_finer = pa.types.is_timestamp(values.type) and values.type.unit in ("us", "ns")
        tz = values.type.tz if pa.types.is_timestamp(values.type) else None
        values = values.cast(pa.timestamp("ms", tz=tz), safe=not is_finer).cast(pa.int64())
    return values.to_pylist()


def _open(source: Path, options: Options) -> ParquetTable:
    if not options.columns.has_header:
        raise ValueError("--no-header: expected it with csv, whose columns may have no names; those of parquet have")
    if options.items is not None:
        require_file(options.items, "a csv or parquet of items and titles")
    return ParquetTable(table_files(source, (".parquet",), options), options.items, options.columns)


PARQUET = Format("parquet", "any parquet of user, item, time; --items one of item, title", _open, has_columns=True)
