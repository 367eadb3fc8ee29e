"""The S3-Rec release, https://github.com/RUCAIBox/CIKM2020-S3Rec: a line a user, `user item item ...`, oldest first.

There are no times and no titles; `--items` may name a csv with titles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .log import MAX_ID_LENGTH, Log
from .reading import Reading
from .source import Columns, Format, Item, Options, require_file
from .table import read_item_table


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
            if max(len(user), *map(len, items)) > MAX_ID_LENGTH:
                reading.report(count, number, f"expected ids of at most {MAX_ID_LENGTH} characters, got a longer one")
                continue
            for item in items:
                log.add(user, item, None)

    def read_items(self, reading: Reading) -> Iterator[Item]:
        if self.items is not None:
            yield from read_item_table(reading, self.items, self.columns)


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
)
