"""The S3-Rec release, https://github.com/RUCAIBox/CIKM2020-S3Rec: a line a user, `user item item ...`, oldest first.

There are no times and no titles; `--items` may name a csv with titles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .log import Log, require_id
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
            try:
                require_id("user", user)
                for item in items:
                    require_id("item", item)
            except ValueError as error:
                reading.report(count, number, str(error))
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
