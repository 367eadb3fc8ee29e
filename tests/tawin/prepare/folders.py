"""Small source files for the tests, and what a data folder made of them holds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tawin.prepare import Options, prepare
from tawin.prepare.dates import date_text
from tools.fuzz.prepare import by_source, columns_of


def write(path: Path, *lines: str | bytes, end: bytes = b"\n") -> Path:
    """The lines as a file, gzip where the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join((line.encode() if isinstance(line, str) else line) + end for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_objects(path: Path, *records: dict[str, Any]) -> Path:
    return write(path, *(json.dumps(record) for record in records))


Row = tuple[str | None, str | None, int]  # user, item, milliseconds; None where the format can say that there is none


def write_log(folder: Path, format_name: str, rows: list[Row]) -> Path:
    """The rows in any of the formats, oldest first; None is empty text where there is no other way."""
    texts = [(user or "", item or "", time) for user, item, time in rows]
    if format_name == "parquet":
        path = folder / "log.parquet"
        pq.write_table(pa.table(dict(zip(("user", "item", "time"), zip(*rows, strict=True), strict=True))), path)
        return path
    if format_name in _JSON_FIELDS:
        names, write_time = _JSON_FIELDS[format_name]
        records = (dict(zip(names, (user, item, write_time(time)), strict=True)) for user, item, time in rows)
        return write_objects(folder / "Office_review.json", *records)
    if format_name == "movielens":
        return write(folder / "ratings.dat", *(f"{user}::{item}::5::{time // 1000}" for user, item, time in texts))
    if format_name == "s3rec":
        users = dict.fromkeys(user for user, _, _ in texts)
        lines = (" ".join([user, *(item for each, item, _ in texts if each == user)]) for user in users)
        return write(folder / "log.txt", *lines)
    if format_name in ("minionerec", "rere"):  # a window from each row to the next one of its user
        windows = []
        for place, (user, item, _) in enumerate(texts):
            before = [each for each in texts[:place] if each[0] == user]
            if before:
                windows.append(f"{user},[{before[-1][1]}],{item}")
        return write(folder / "rows.csv", "user_id,history_item_id,item_id", *windows)
    return write(folder / "log.csv", "user,item,time", *(f"{user},{item},{time}" for user, item, time in texts))


_JSON_FIELDS: dict[str, tuple[tuple[str, str, str], Callable[[int], Any]]] = {
    "amazon2018": (("reviewerID", "asin", "unixReviewTime"), lambda time: time // 1000),
    "amazon2023": (("user_id", "parent_asin", "timestamp"), lambda time: time),
    "yelp": (("user_id", "business_id", "date"), date_text),
}


def made(format_name: str, source: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """What `prepare` reports, for a data set too small for a 5-core."""
    return prepare(format_name, source, folder, Options(**{"min_interactions": 0, **options}))


def sequences(folder: Path) -> dict[str, list[str]]:
    """The source's own user ids with their own item ids, oldest first."""
    return by_source(*columns_of(folder))


def titles(folder: Path) -> dict[str, str | None]:
    items = pq.read_table(folder / "items.parquet").to_pydict()
    return dict(zip(items["source_id"], items["title"], strict=True))


def times(folder: Path) -> list[list[int]]:
    return pq.read_table(folder / "interactions.parquet")["times"].to_pylist()
