"""Plain csv of (user, item, time), whatever the columns are called, and csv of (item, title)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..columns import DataError
from .delimited import find_column, read_rows
from .log import Log
from .reading import Reading
from .source import Columns, Format, Item, Options, require_file
from .times import TimeReader

USUAL = {
    "user": ("user", "user_id", "userid", "uid", "customer", "customer_id", "visitor_id", "session_id", "reviewer_id"),
    "item": (
        "item",
        "item_id",
        "iid",
        "product",
        "product_id",
        "movie_id",
        "parent_asin",
        "asin",
        "business_id",
        "sku",
    ),
    "time": ("timestamp", "time", "date", "datetime", "ts", "event_time", "created_at", "unix_review_time"),
    "rating": ("rating", "stars", "score", "overall"),
    "title": ("title", "name", "item_title", "item_name", "product_name"),
}
"""Column names that are known, most telling first; capitals and underscores make no difference."""
OF_ITEMS = (*USUAL["item"], "id")
SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")


@dataclass(frozen=True)
class Places:
    """Where a table has what; None: nowhere."""

    user: int
    item: int
    time: int | None
    rating: int | None

    @classmethod
    def find(cls, header: Sequence[str], columns: Columns, wants_rating: bool, path: Path) -> Places:
        """The columns of a header. DataError where one is missing."""
        user, item, time, rating = (
            find_column(header, getattr(columns, name), USUAL[name], name, path)
            for name in ("user", "item", "time", "rating")
        )
        names = ", ".join(name.strip() for name in header)
        for name, place in (("user", user), ("item", item), ("time", time if columns.has_times else 0)):
            if place is None:
                hint = "; where the rows stand oldest first, --no-times does without" if name == "time" else ""
                raise DataError(
                    f"{path}: expected a column for the {name}, got {names}; say --{name}-column NAME, or --no-header "
                    f"where these are no names{hint}"
                )
        if wants_rating and rating is None:
            raise DataError(f"{path}: expected a column for the rating, got {names}; say --rating-column NAME")
        assert user is not None and item is not None
        return cls(user, item, time if columns.has_times else None, rating if wants_rating else None)

    @classmethod
    def numbered(cls, columns: Columns, wants_rating: bool) -> Places:
        """The columns of a table without a header: user, item, time unless numbers say otherwise."""
        time = _number(columns.time or "3", "time") if columns.has_times else None
        rating = _number(columns.rating or "4", "rating") if wants_rating else None
        return cls(_number(columns.user or "1", "user"), _number(columns.item or "2", "item"), time, rating)


def _number(text: str, name: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--{name}-column: expected a number from 1 with --no-header, got {text!r}")
    return int(text) - 1


@dataclass(frozen=True)
class Table:
    files: tuple[Path, ...]
    items: Path | None
    columns: Columns

    def read_log(self, reading: Reading, log: Log) -> None:
        times = TimeReader(self.columns.time_unit)
        for path in self.files:
            places, width = None, 0
            for count, number, lines, row in read_rows(reading, path, self.columns.delimiter):
                if places is None:
                    width = len(row)
                    if self.columns.has_header:
                        places = Places.find(row, self.columns, log.wants_rating, path)
                        continue
                    places = Places.numbered(self.columns, log.wants_rating)
                try:
                    if len(row) != width:
                        raise ValueError(f"expected {width} fields, as the first line has, got {len(row)}")
                    add_row(log, times, row, places)
                except ValueError as error:
                    reading.report(count, number, str(error), lines)

    def read_items(self, reading: Reading) -> Iterator[Item]:
        if self.items is not None:
            yield from read_item_table(reading, self.items, self.columns)


def add_row(log: Log, times: TimeReader, row: Sequence[str], places: Places) -> None:
    """ValueError, with the reason, for a row that is no interaction."""
    if max(places.user, places.item, places.time or 0, places.rating or 0) >= len(row):
        raise ValueError(f"expected more columns, got {len(row)}")
    user, item = row[places.user].strip(), row[places.item].strip()
    if "\n" in user or "\n" in item:
        raise ValueError("expected an id on one line, got one with a line break: a quotation mark is never closed")
    time = None if places.time is None else times.read(row[places.time])
    log.add(user, item, time, None if places.rating is None else row[places.rating])


def read_item_table(reading: Reading, path: Path, columns: Columns) -> Iterator[Item]:
    """Items and titles of a csv with a header."""
    places: tuple[int, int] | None = None
    width = 0
    for count, number, lines, row in read_rows(reading, path, columns.delimiter):
        if places is None:
            item = find_column(row, None, OF_ITEMS, "item", path)
            title = find_column(row, columns.title, USUAL["title"], "title", path)
            if item is None or title is None:
                raise DataError(
                    f"{path}: expected columns for the item (item_id, id, ...) and the title (title, name, ... or "
                    f"--title-column), got {', '.join(row)}"
                )
            places, width = (item, title), len(row)
        elif len(row) != width or not row[places[0]].strip():
            reading.report(count, number, f"expected {width} fields and an item, got {len(row)} fields", lines)
        else:
            yield Item(row[places[0]].strip(), row[places[1]])


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
    if options.items is not None:
        require_file(options.items, "a csv of items and titles")
    return Table(table_files(source, SUFFIXES, options), options.items, options.columns)


CSV = Format("csv", "any csv of user, item, time; --items a csv of item, title", _open, has_columns=True)
