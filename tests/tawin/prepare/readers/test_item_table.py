"""The file that describes the items: its own columns and delimiter, and whether it is of this log at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tawin.data.columns import DataError
from tawin.prepare import FORMATS, Columns

from ..folders import made, titles, write, write_log, write_objects

MS = 1_700_000_000_000


ROWS = [("1", str(item), MS + 1000 * item) for item in (7, 8, 9)]


def write_items(folder: Path, format_name: str, items: dict[str, str]) -> Path:
    if format_name.startswith("amazon"):
        name = "asin" if "2018" in format_name else "parent_asin"
        return write_objects(
            folder / "meta_Office.json", *({name: item, "title": title} for item, title in items.items())
        )
    if format_name == "yelp":
        return write_objects(folder / "business.json", *({"business_id": i, "name": t} for i, t in items.items()))
    if format_name == "movielens":
        return write(folder / "movies.dat", *(f"{item}::{title}::Drama" for item, title in items.items()))
    if format_name in ("minionerec", "rere"):
        return write(folder / "info.txt", *(f"{title}\t{item}" for item, title in items.items()))
    return write(folder / "items.csv", "item_id,title", *(f"{item},{title}" for item, title in items.items()))


@pytest.mark.parametrize("format_name", FORMATS)
def test_an_items_file_of_another_log_is_refused_and_one_of_a_part_says_how_many(
    tmp_path: Path, format_name: str
) -> None:
    log = write_log(tmp_path, format_name, ROWS)
    with pytest.raises(DataError, match=r"expected items of the log, such as '7', got others, such as '007'"):
        made(format_name, log, tmp_path / "data", items=write_items(tmp_path, format_name, {"007": "A", "008": "B"}))
    with pytest.raises(DataError, match=r"expected items of the log, such as '7', got none"):
        made(format_name, log, tmp_path / "data", items=write_items(tmp_path, format_name, {}))
    assert not (tmp_path / "data").exists()
    items = write_items(tmp_path, format_name, {"7": "Seven", "8.0": "Eight", "99": "Other"})
    report = made(format_name, log, tmp_path / "data", items=items)
    assert [each for each in report["notes"] if "describes" in each] == [
        f"{items.name} describes 2 of the 3 items of the log"
    ]
    assert {item: titles(tmp_path / "data")[item] for item in "789"} == {"7": "Seven", "8": "Eight", "9": None}
    whole = write_items(tmp_path, format_name, {"7": "Seven", "8": "Eight", "9": "Nine"})
    assert not any("describes" in each for each in made(format_name, log, tmp_path / "more", items=whole)["notes"])


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("missing", ["nan", "NULL", "", "\\N"])
def test_an_item_without_an_id_is_counted_and_is_none_of_the_catalogue(
    tmp_path: Path, format_name: str, missing: str
) -> None:
    log = write_log(tmp_path, format_name, ROWS)
    items = write_items(tmp_path, format_name, {"7": "Seven", missing: "Nothing", "8": "Eight", "9": "Nine"})
    report = made(format_name, log, tmp_path / "data", items=items, max_malformed=0.0)
    assert set(titles(tmp_path / "data")) == {"7", "8", "9"}
    assert report["files"][-1]["without_item"] == 1 and report["malformed"] == []


@pytest.mark.parametrize("format_name", ["csv", "parquet", "s3rec"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_table_of_items_has_columns_and_a_delimiter_of_its_own(
    tmp_path: Path, format_name: str, suffix: str
) -> None:
    log = write_log(tmp_path, format_name, ROWS)
    if suffix == "csv":
        items = write(tmp_path / "items.csv", "id:code:label,one,two", "x:7:Seven", "y:8:Eight", "z:9:Nine")
    else:
        items = tmp_path / "items.parquet"
        columns = {"id": ["x", "y", "z"], "code": [7.0, 8.0, 9.0], "label,one,two": ["Seven", "Eight", "Nine"]}
        pq.write_table(pa.table(columns), items)
    columns = Columns(items_item="code", title="label,one,two", items_delimiter=":", delimiter=",")
    report = made(format_name, log, tmp_path / "data", items=items, columns=columns)
    assert titles(tmp_path / "data") == {"7": "Seven", "8": "Eight", "9": "Nine"}
    assert json.loads((tmp_path / "data" / "prepare.json").read_text())["options"]["columns"]["items_item"] == "code"
    assert not any("describes" in each for each in report["notes"])
    with pytest.raises(DataError, match=r"expected a column 'sku' for the item, got id"):
        made(format_name, log, tmp_path / "more", items=items, columns=Columns(items_item="sku", items_delimiter=":"))


def test_the_delimiter_of_the_log_is_none_of_the_items_file(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "user|item|time", *(f"1|{item}|{MS + item}" for item in (7, 8, 9)))
    items = write(tmp_path / "items.csv", "item_id;title", "7;Seven", "8;Eight", "9;Nine")
    made("csv", log, tmp_path / "data", items=items, columns=Columns(delimiter="|"))
    assert titles(tmp_path / "data") == {"7": "Seven", "8": "Eight", "9": "Nine"}
    with pytest.raises(ValueError, match=r"--items-delimiter: expected one character"):
        Columns(items_delimiter="::")


def test_an_items_file_without_the_usual_columns_names_the_options(tmp_path: Path) -> None:
    log = write_log(tmp_path, "csv", ROWS)
    items = write(tmp_path / "items.csv", "code,label", "7,Seven")
    with pytest.raises(DataError, match=r"items.csv: .* or --items-item-column\) .* --title-column\), got code, label"):
        made("csv", log, tmp_path / "data", items=items)


@pytest.mark.parametrize(
    ("suffix", "column"),
    [
        ("csv", ["nan", "NULL", "1984"]),
        ("parquet", ["nan", "\\N", "1984"]),
        ("parquet", [None, None, 1984]),
        ("parquet", [float("nan"), None, 0.5]),
    ],
)
def test_a_title_that_is_missing_is_none_and_a_number_is_one(tmp_path: Path, suffix: str, column: list[Any]) -> None:
    log = write_log(tmp_path, "csv", ROWS)
    items = tmp_path / f"items.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"item_id": [7, 8, 9], "title": column}), items)
    else:
        write(items, "item_id,title", *(f"{item},{title}" for item, title in zip((7, 8, 9), column, strict=True)))
    assert made("csv", log, tmp_path / "data", items=items)["counts"]["titles"] == 1
    assert titles(tmp_path / "data") == {"7": None, "8": None, "9": str(column[2])}
