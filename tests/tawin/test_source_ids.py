"""Ids of the log and ids of the data folder, each from the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tawin.columns import DataError
from tawin.source_ids import read_source_ids


def write_items(folder: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), folder / "items.parquet")
    return folder


def test_each_id_is_found_from_the_other(tmp_path: Path) -> None:
    found = read_source_ids(write_items(tmp_path, item_id=[0, 5], source_id=["007", "b"]))
    assert [found.item_id(source) for source in ("b", "007")] == [5, 0]
    assert [found.source_ids[item] for item in (5, 0)] == ["b", "007"]
    with pytest.raises(ValueError, match=r"--history: expected ids of the log, like 007, b, got '7'"):
        found.item_id("7")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": [0]}, r"items.parquet: column 'source_id': expected, but the file has only item_id"),
        ({"item_id": [0], "source_id": [7]}, r"column 'source_id': expected a string for each item"),
        ({"item_id": [0, 1], "source_id": ["a", None]}, r"column 'source_id': expected a string for each item"),
    ],
)
def test_a_folder_that_was_not_prepared_is_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_source_ids(write_items(tmp_path, **columns))
