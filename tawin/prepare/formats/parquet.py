"""Parquet of (user, item, time), whatever the columns are called; rows are counted where other files have lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.columns import ParquetReader, open_parquet, reading_parquet
from ..log import Log
from ..readers.column_names import Places
from ..readers.item_table import read_item_table
from ..readers.lines import Reading
from ..readers.parquet_columns import ids, is_time, read_batches, times
from ..source import Columns, Format, Item, Options, require_file
from ..times import TimeReader, choose_reader
from .csv import table_files


@dataclass(frozen=True)
class ParquetTable:
    files: tuple[Path, ...]
    items: Path | None
    columns: Columns

    def read_log(self, reading: Reading, log: Log) -> None:
        columns = self.columns
        chosen: TimeReader | None = None
        for path in self.files:
            count = reading.start(path, "row")
            with open_parquet(path, ()) as file:
                places = Places.find(file.schema_arrow.names, columns, log.wants_rating, path)
                if places.time is None:
                    log.time_reader = None
                elif is_time(file.schema_arrow.field(places.time), path):
                    log.time_reader = TimeReader("timestamp")
                else:
                    if chosen is None:
                        numbers = self._numbers(reading.look())
                        chosen = choose_reader(numbers, path, columns.time_unit, columns.time_format)
                    log.time_reader = chosen
                for user, item, time, rating, event in _rows(reading, file, path, places):
                    count.lines += 1
                    if places.event is not None and log.is_other_event(event):
                        continue
                    try:
                        log.add_row(user, item, time, rating, event)
                    except ValueError as error:
                        reading.leave_out(count, count.lines, error)
            reading.finish(count)

    def _numbers(self, reading: Reading) -> Iterator[Any]:
        """The times of the files in which they are numbers or text."""
        for path in self.files:
            with open_parquet(path, ()) as file:
                place = Places.find(file.schema_arrow.names, self.columns, False, path).time
                if place is not None and not is_time(file.schema_arrow.field(place), path):
                    name = file.schema_arrow.names[place]
                    for batch in read_batches(reading, file, path, [name]):
                        yield from times(batch[name], path)

    def read_items(self, reading: Reading) -> Iterator[Item]:
        if self.items is not None:
            yield from read_item_table(reading, self.items, self.columns)


def _rows(
    reading: Reading, file: ParquetReader, path: Path, places: Places
) -> Iterator[tuple[str, str, Any, Any, Any]]:
    """User, item, time, rating and event; None where there is no such column, or null."""
    header = file.schema_arrow.names
    user, item = header[places.user], header[places.item]
    time = None if places.time is None else header[places.time]
    rating = None if places.rating is None else header[places.rating]
    event = None if places.event is None else header[places.event]
    for batch in read_batches(reading, file, path, [user, item, time, rating, event]):
        nothing = [None] * len(batch[user])
        with reading_parquet(path):
            ratings = nothing if rating is None else batch[rating].to_pylist()
            events = nothing if event is None else batch[event].to_pylist()
        yield from zip(
            ids(batch[user], user, path),
            ids(batch[item], item, path),
            nothing if time is None else times(batch[time], path),
            ratings,
            events,
            strict=True,
        )


def _open(source: Path, options: Options) -> ParquetTable:
    if not options.columns.has_header:
        raise ValueError("--no-header: expected it with csv, whose columns may have no names; those of parquet have")
    if options.items is not None:
        require_file(options.items, "a csv or parquet of items and titles")
    return ParquetTable(table_files(source, (".parquet",), options), options.items, options.columns)


PARQUET = Format("parquet", "any parquet of user, item, time; --items one of item, title", _open, has_columns=True)
