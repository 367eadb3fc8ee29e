"""The S3-Rec release, https://github.com/RUCAIBox/CIKM2020-S3Rec: a line a user, `user item item ...`, oldest first.

There are no times and no titles; `--items` may name a csv with titles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..ids import MissingError, plain_id
from ..log import Log
from ..readers.item_table import read_item_table
from ..readers.lines import FileCount, Reading
from ..source import Columns, Format, Item, Options, require_file


@dataclass(frozen=True)
class S3Rec:
    sequences: Path
    items: Path | None
    columns: Columns

    def read_log(self, reading: Reading, log: Log) -> None:
        seen: set[str] = set()
        for count, number, text in reading.lines(self.sequences):
            user, *items = text.split()
            if user in seen:
                reading.report(count, number, f"expected a line a user, got another one of user {user}")
                continue
            seen.add(user)
            if not items:
                reading.report(count, number, f"expected items after user {user}, got none")
                continue
            try:
                plain_id("user", user)
                found = [_item(item, count) for item in items]
            except ValueError as error:
                reading.leave_out(count, number, error)
                continue
            for item in found:
                if item is not None:
                    log.add(user, item, None)

    def read_items(self, reading: Reading) -> Iterator[Item]:
        if self.items is not None:
            yield from read_item_table(reading, self.items, self.columns)


def _item(text: str, count: FileCount) -> str | None:
    """None for one that is missing, which is counted: the others of its line are still in order."""
    try:
        return plain_id("item", text)
    except MissingError as error:
        count.missing[error.name] += 1
        return None


def _open(source: Path, options: Options) -> S3Rec:
    require_file(source, "a file like Beauty.txt")
    if options.items is not None:
        require_file(options.items, "a csv of items")
    return S3Rec(source, options.items, options.columns)


S3REC = Format(
    "s3rec",
    "the S3-Rec release: a line a user, user item item ...",
    _open,
    min_interactions=0,
    duplicates="keep",
    has_item_table=True,
)
