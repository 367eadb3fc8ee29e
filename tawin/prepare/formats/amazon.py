"""Amazon reviews, https://nijianmo.github.io/amazon (2018) and https://amazon-reviews-2023.github.io.

2018 (and 2014): reviews are JSON lines with `reviewerID`, `asin`, `unixReviewTime` (seconds, whole days), `overall`;
metadata has `asin` and `title`; the "ratings only" files are csv without a header: item, user, rating, time.
2023: `user_id`, `parent_asin`, `timestamp` (milliseconds), `rating`; metadata has `parent_asin` and `title`; the
"ratings only" files are csv with the header user_id,parent_asin,rating,timestamp.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..ids import plain_id
from ..log import Log
from ..readers.delimited import read_rows
from ..readers.json_lines import read_objects, text_field
from ..readers.lines import Reading
from ..source import Format, Item, Options, log_and_items
from ..times import TimeReader


@dataclass(frozen=True)
class Fields:
    """Names of the fields of a release, and the order of its ratings-only files."""

    user: str
    item: str
    time: str
    rating: str
    unit: Literal["s", "ms"]
    csv: tuple[str, str, str, str]


FIELDS_2018 = Fields("reviewerID", "asin", "unixReviewTime", "overall", "s", ("item", "user", "rating", "time"))
FIELDS_2023 = Fields("user_id", "parent_asin", "timestamp", "rating", "ms", ("user", "item", "rating", "time"))
META = ("meta_*.json", "meta_*.jsonl")
REVIEWS = ("*.json", "*.jsonl", "*.csv")


@dataclass(frozen=True)
class Amazon:
    fields: Fields
    reviews: Path
    items: Path | None

    def read_log(self, reading: Reading, log: Log) -> None:
        fields = self.fields
        log.time_reader = TimeReader(fields.unit)
        if ".csv" in self.reviews.suffixes:
            self._read_ratings(reading, log)
            return
        for count, number, record in read_objects(reading, self.reviews):
            try:
                log.add_row(
                    text_field(record, "user", fields.user),
                    text_field(record, "item", fields.item),
                    record.get(fields.time),
                    record.get(fields.rating),
                )
            except ValueError as error:
                reading.leave_out(count, number, error)

    def _read_ratings(self, reading: Reading, log: Log) -> None:
        user, item, rating, time = (self.fields.csv.index(name) for name in ("user", "item", "rating", "time"))
        for count, number, lines, row in read_rows(reading, self.reviews, ","):
            if number == 1 and self.fields.user in row:
                continue
            try:
                if len(row) != 4:
                    raise ValueError(f"expected {', '.join(self.fields.csv)}, got {len(row)} fields")
                log.add_row(row[user].strip(), row[item].strip(), row[time], row[rating])
            except ValueError as error:
                reading.leave_out(count, number, error, lines)

    def read_items(self, reading: Reading) -> Iterator[Item]:
        if self.items is None:
            return
        for count, number, record in read_objects(reading, self.items):
            try:
                yield Item(plain_id("item", text_field(record, "item", self.fields.item)), _title(record))
            except ValueError as error:
                reading.leave_out(count, number, error)


def _title(record: dict[str, Any]) -> str | None:
    """Titles hold HTML entities; some of 2018 are a page's source text and no title."""
    title = record.get("title")
    if not isinstance(title, str) or "getTime" in title or "<span" in title:
        return None
    return html.unescape(title)


def _open(fields: Fields, source: Path, options: Options) -> Amazon:
    files = log_and_items(source, options, ("reviews", REVIEWS), ("metadata of items", META), but="meta_")
    return Amazon(fields, *files)


AMAZON_2018 = Format(
    "amazon2018",
    "Amazon reviews of 2018 or 2014: JSON lines or ratings-only csv; metadata for the titles",
    lambda source, options: _open(FIELDS_2018, source, options),
    has_categories=True,
)
AMAZON_2023 = Format(
    "amazon2023",
    "Amazon reviews of 2023: JSON lines or ratings-only csv; metadata for the titles",
    lambda source, options: _open(FIELDS_2023, source, options),
    duplicates="first",
    has_categories=True,
)
