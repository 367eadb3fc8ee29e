"""The Yelp Open Dataset, https://business.yelp.com/data/resources/open-dataset: JSON lines.

Reviews have `user_id`, `business_id`, `date` ("2018-07-07 22:09:11"; older releases "2011-04-19") and `stars`;
businesses have `business_id` and `name`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..ids import plain_id
from ..log import Log
from ..readers.json_lines import read_objects, text_field
from ..readers.lines import Reading
from ..source import Format, Item, Options, log_and_items
from ..times import TimeReader

REVIEWS = ("*review.json", "*review.jsonl")
BUSINESSES = ("*business.json", "*business.jsonl")


@dataclass(frozen=True)
class Yelp:
    reviews: Path
    items: Path | None

    def read_log(self, reading: Reading, log: Log) -> None:
        log.time_reader = TimeReader("date")
        for count, number, record in read_objects(reading, self.reviews):
            try:
                log.add_row(
                    text_field(record, "user", "user_id"),
                    text_field(record, "item", "business_id"),
                    record.get("date"),
                    record.get("stars"),
                )
            except ValueError as error:
                reading.leave_out(count, number, error)

    def read_items(self, reading: Reading) -> Iterator[Item]:
        if self.items is None:
            return
        for count, number, record in read_objects(reading, self.items):
            try:
                name = record.get("name")
                item = plain_id("item", text_field(record, "item", "business_id"))
                yield Item(item, name if isinstance(name, str) else None)
            except ValueError as error:
                reading.leave_out(count, number, error)


def _open(source: Path, options: Options) -> Yelp:
    return Yelp(*log_and_items(source, options, ("reviews", REVIEWS), ("businesses", BUSINESSES)))


YELP = Format("yelp", "the Yelp Open Dataset: review and business JSON lines", _open)
