"""Tables of delimited text, row by row, with the line that each row begins at."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from .lines import FileCount, Reading

DELIMITERS = ",\t;|"


def read_rows(reading: Reading, path: Path, delimiter: str | None) -> Iterator[tuple[FileCount, int, int, list[str]]]:
    """The file's account, the numbers of a row's first line and of how many lines it has, and its fields.

    delimiter: None for the one of DELIMITERS that the first line has most of. What the csv module cannot read is
    malformed, with all lines that it swallowed.
    """
    lines = reading.lines(path)
    count: FileCount | None = None
    taken: list[int] = []  # numbers of the lines of the row at hand

    def texts() -> Iterator[str]:
        nonlocal count
        for count, number, text in lines:  # noqa: B007
            taken.append(number)
            yield f"{text}\n"

    stream = texts()
    first = next(stream, None)
    if first is None:
        return
    chosen = delimiter or max(DELIMITERS, key=first.count)
    rows = csv.reader(_chain(first, stream), delimiter=chosen)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            assert count is not None
            reading.report(count, taken[0], f"expected a row of fields, got none: {error}", len(taken))
            taken.clear()
            continue
        assert count is not None
        yield count, taken[0], len(taken), row
        taken.clear()


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
