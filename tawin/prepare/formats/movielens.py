"""MovieLens, https://grouplens.org/datasets/movielens, in its three forms.

csv (20M, 25M, 32M, latest): ratings.csv with the header userId,movieId,rating,timestamp; movies.csv.
.dat (1M, 10M): ratings.dat, user::movie::rating::timestamp; movies.dat, movie::title::genres (1M in Latin-1).
100k: u.data, tabs between user, movie, rating and timestamp; u.item, movie|title|... in Latin-1.
Timestamps are in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..ids import plain_id
from ..log import Log
from ..readers.delimited import read_rows
from ..readers.lines import FileCount, Reading
from ..source import Format, Item, Options, log_and_items
from ..times import TimeReader

RATINGS = ("ratings.csv", "ratings.dat", "u.data")
MOVIES = ("movies.csv", "movies.dat", "u.item")
_SEPARATORS = {"dat": "::", "data": "\t", "item": "|"}


@dataclass(frozen=True)
class MovieLens:
    ratings: Path
    items: Path | None

    def read_log(self, reading: Reading, log: Log) -> None:
        log.time_reader = TimeReader("s")
        for count, number, lines, row in _rows(reading, self.ratings, "userId"):
            try:
                if len(row) != 4:
                    raise ValueError(f"expected user, movie, rating, timestamp, got {len(row)} fields")
                log.add_row(row[0].strip(), row[1].strip(), row[3], row[2])
            except ValueError as error:
                reading.leave_out(count, number, error, lines)

    def read_items(self, reading: Reading) -> Iterator[Item]:
        if self.items is None:
            return
        for count, number, lines, row in _rows(reading, self.items, "movieId"):
            try:
                if len(row) < 2:
                    raise ValueError(f"expected movie, title, ..., got {len(row)} fields")
                yield Item(plain_id("item", row[0].strip()), row[1])
            except ValueError as error:
                reading.leave_out(count, number, error, lines)


def _rows(reading: Reading, path: Path, header: str) -> Iterator[tuple[FileCount, int, int, list[str]]]:
    """Rows of any of the forms, without the header of the csv ones."""
    kind = next((part for part in reversed(path.name.lower().split(".")) if part != "gz"), "")
    separator = _SEPARATORS.get(kind)
    if separator is not None:
        for count, number, text in reading.lines(path, latin_1=True):
            yield count, number, 1, text.rstrip("\r").split(separator)
        return
    for count, number, lines, row in read_rows(reading, path, ","):
        if number > 1 or header not in row:
            yield count, number, lines, row


def _open(source: Path, options: Options) -> MovieLens:
    return MovieLens(*log_and_items(source, options, ("ratings", RATINGS), ("movies", MOVIES)))


MOVIELENS = Format("movielens", "MovieLens, 100k to 32M: csv, .dat or u.data", _open)
