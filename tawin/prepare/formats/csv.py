"""Plain csv of (user, item, time), whatever the columns are called; RecBole's .inter files are such tables too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.columns import DataError
from ..log import Log
from ..readers.column_names import Places
from ..readers.delimited import read_rows
from ..readers.item_table import read_item_table
from ..readers.lines import FileCount, Reading
from ..source import Columns, Format, Item, Options, one_file, require_file
from ..times import choose_reader

SUFFIXES = (".csv", ".tsv", ".txt", ".inter")
SUFFIXES_WITH_GZ = (*SUFFIXES, *(f"{suffix}.gz" for suffix in SUFFIXES))


@dataclass(frozen=True)
class Table:
    files: tuple[Path, ...]
    items: Path | None
    columns: Columns

    def read_log(self, reading: Reading, log: Log) -> None:
        columns = self.columns
        if columns.has_times:
            times = self._times(reading.look())
            log.time_reader = choose_reader(times, self.files[0], columns.time_unit, columns.time_format)
        for count, number, lines, row, places, width in self._rows(reading, log.wants_rating):
            try:
                if len(row) != width:
                    raise ValueError(f"expected {width} fields, as the first line has, got {len(row)}")
                add_row(log, row, places)
            except ValueError as error:
                reading.leave_out(count, number, error, lines)

    def _rows(
        self, reading: Reading, wants_rating: bool
    ) -> Iterator[tuple[FileCount, int, int, list[str], Places, int]]:
        """Rows of all files without their headers, as `read_rows` has them, where they have what, and their width."""
        for path in self.files:
            places, width = None, 0
            for count, number, lines, row in read_rows(reading, path, self.columns.delimiter):
                if places is None:
                    width = len(row)
                    if self.columns.has_header:
                        places = Places.find(row, self.columns, wants_rating, path)
                        continue
                    places = Places.numbered(self.columns, wants_rating)
                yield count, number, lines, row, places, width

    def _times(self, reading: Reading) -> Iterator[str]:
        for _, _, _, row, places, width in self._rows(reading, False):
            if places.time is not None and len(row) == width > places.time:
                yield row[places.time]

    def read_items(self, reading: Reading) -> Iterator[Item]:
        if self.items is not None:
            yield from read_item_table(reading, self.items, self.columns)


def add_row(log: Log, row: Sequence[str], places: Places) -> None:
    """ValueError, with the reason, for a row that is no interaction."""
    if max(places.user, places.item, places.time or 0, places.rating or 0, places.event or 0) >= len(row):
        raise ValueError(f"expected more columns, got {len(row)}")
    event = None if places.event is None else row[places.event]
    if places.event is not None and log.is_other_event(event):
        return
    user, item = row[places.user].strip(), row[places.item].strip()
    if "\n" in user or "\n" in item:
        raise ValueError("expected an id on one line, got one with a line break: a quotation mark is never closed")
    time = None if places.time is None else row[places.time]
    log.add_row(user, item, time, None if places.rating is None else row[places.rating], event)


def table_files(source: Path, suffixes: Sequence[str], options: Options) -> tuple[Path, ...]:
    """The file, or all files of the folder with one of the suffixes, by name, but the one that describes the items."""
    if not source.is_dir():
        return (require_file(source, "a file, or a folder of files"),)
    items = options.items.resolve() if options.items else None
    found = (
        path for path in sorted(source.iterdir()) if path.is_file() and path.name.lower().endswith(tuple(suffixes))
    )
    files = tuple(path for path in found if path.resolve() != items and not path.name.startswith((".", "_")))
    if not files:
        raise DataError(f"{source}: expected files that end in {', '.join(suffixes)}, found none")
    return files


def _open(source: Path, options: Options) -> Table:
    files, items = table_files(source, SUFFIXES_WITH_GZ, options), options.items
    if items is None and source.is_dir() and ".inter" in files[0].suffixes:
        items = one_file(source, ("*.item",), "items")
    if items is not None:
        require_file(items, "a csv of items and titles")
    return Table(files, items, options.columns)


CSV = Format(
    "csv",
    "any csv of user, item, time, RecBole's .inter too; --items a csv of item, title",
    _open,
    has_columns=True,
)
