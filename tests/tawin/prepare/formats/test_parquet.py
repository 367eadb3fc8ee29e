"""Parquet of user, item and time."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tawin.data.columns import DataError
from tawin.prepare import Columns
from tawin.prepare.readers import parquet_columns as module

from ..folders import made, sequences, times, titles

EXPECTED = {"7": ["a", "c", "b"]}
MS = [1_700_000_000_000, 1_700_086_400_000, 1_700_172_800_000]


def write_table(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


@pytest.mark.parametrize("user", [pa.array([7, 7, 7], pa.int32()), pa.array(["7", " 7", "7"]).dictionary_encode()])
@pytest.mark.parametrize(
    "time",
    [
        pa.array([MS[0], MS[2], MS[1]]),
        pa.array([MS[0] / 1000, MS[2] / 1000, MS[1] / 1000], pa.float64()),
        pa.array([MS[0], MS[2], MS[1]], pa.timestamp("ms")),
        pa.array([datetime.fromtimestamp(MS[place] / 1000, UTC) for place in (0, 2, 1)]),
        pa.array([1000 * MS[0] + 1, 1000 * MS[2] + 999, 1000 * MS[1] + 5], pa.timestamp("us")),
        pa.array([1_000_000 * MS[0] + 7, 1_000_000 * MS[2], 1_000_000 * MS[1]], pa.timestamp("ns", "Asia/Tokyo")),
        pa.array(["2023-11-14 22:13:20", "2023-11-16 22:13:20", "2023-11-15 22:13:20"]),
    ],
)
def test_ids_and_times_of_any_usual_type_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: pa.Array, time: pa.Array
) -> None:
    monkeypatch.setattr(module, "BATCH_ROWS", 2)
    path = write_table(tmp_path / "log.parquet", extra=[1, 2, 3], user_id=user, item=["a", "b", "c"], timestamp=time)
    made("parquet", path, tmp_path / "data")
    assert sequences(tmp_path / "data") == EXPECTED
    assert times(tmp_path / "data") == [MS]


def test_dates_are_midnight_utc(tmp_path: Path) -> None:
    days = [date(1970, 1, 2), date(1970, 1, 4), date(1970, 1, 3)]
    made(
        "parquet",
        write_table(tmp_path / "log.parquet", user=[7] * 3, item=["a", "b", "c"], date=days),
        tmp_path / "data",
    )
    assert sequences(tmp_path / "data") == EXPECTED
    assert times(tmp_path / "data") == [[86_400_000, 2 * 86_400_000, 3 * 86_400_000]]


def test_malformed_rows_are_counted_by_row(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "log.parquet",
        user=[7, 7, 7, None, 7, 7],
        item=["a", "b", "c", "d", None, "f"],
        time=pa.array([1, 3, 2, 4, 5, None]),
        rating=[5.0, 5.0, 5.0, 5.0, 5.0, 5.0],
    )
    report = made("parquet", path, tmp_path / "data", max_malformed=0.5, min_rating=4)
    assert sequences(tmp_path / "data") == EXPECTED
    assert report["files"] == [{"file": "log.parquet", "rows": 6, "malformed": 1, "without_item": 1, "without_user": 1}]
    assert report["malformed"] == [f"{path}, row 6: expected a time, got none"]
    with pytest.raises(DataError, match=r"at most 10.0% malformed rows \(--max-malformed\), got 1 of 6"):
        made("parquet", path, tmp_path / "more", max_malformed=0.1)
    assert not (tmp_path / "more").exists()


def test_points_in_time_that_no_calendar_has_are_malformed_and_the_others_are_read(tmp_path: Path) -> None:
    for kind, far in ((pa.timestamp("ms"), 4 * 10**14), (pa.date32(), 2**31 - 1)):
        path = write_table(
            tmp_path / "log.parquet", user=[7] * 4, item=["a", "far", "b", "c"], time=pa.array([1, far, 2, 3], kind)
        )
        report = made("parquet", path, tmp_path / str(kind), max_malformed=0.5)
        assert sequences(tmp_path / str(kind)) == {"7": ["a", "b", "c"]}
        (said,) = report["malformed"]
        assert said.startswith(f"{path}, row 2: expected a time before the year 10000, got ")


def test_a_folder_of_parts_with_titles_in_parquet(tmp_path: Path) -> None:
    for part, (item, time) in enumerate(zip("abc", MS, strict=True)):
        write_table(tmp_path / "log" / f"part-{part}.parquet", user=["7"], item=[item], time=[time])
    items = write_table(tmp_path / "log" / "items.parquet", item_id=["a", None, "c"], name=["A", "B", None])
    report = made("parquet", tmp_path / "log", tmp_path / "data", items=items, max_malformed=0.5)
    assert titles(tmp_path / "data") == {"a": "A", "b": None, "c": None}
    assert report["files"][-1] == {"file": "items.parquet", "rows": 3, "malformed": 0, "without_item": 1}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": [1.5], "item": ["a"], "time": [1]}, r"column 'user': expected ids, .* got double such as .*1.5"),
        ({"user": [1.0, 2.0**53], "item": ["a"] * 2, "time": [1] * 2}, r"'user': expected ids, .* got double such as"),
        ({"user": [1], "item": pa.array([2.0**24], pa.float32()), "time": [1]}, r"'item': .* got float such as"),
        ({"user": [1], "item": [["a"]], "time": [1]}, r"column 'item': expected ids, strings or integers, got list"),
        ({"user": [1], "item": ["a"]}, r"expected a column for the time, got user, item; "),
        (
            {"user": [1], "item": ["a"], "time": pa.array([1], pa.time32("s"))},
            r"column 'time': expected points in time, got time32",
        ),
        ({"user": [1], "item": ["a"], "time": pa.array([1], pa.duration("s"))}, r"expected points in time, got durat"),
    ],
)
def test_columns_of_another_type_or_name_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        made("parquet", write_table(tmp_path / "log.parquet", **columns), tmp_path / "data")


def test_columns_without_names_are_those_of_csv(tmp_path: Path) -> None:
    path = write_table(tmp_path / "log.parquet", user=[7], item=["a"], time=[1])
    with pytest.raises(ValueError, match=r"--no-header: expected it with csv"):
        made("parquet", path, tmp_path / "data", columns=Columns(has_header=False))


def test_what_is_no_parquet_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_text("user,item,time\n")
    with pytest.raises(DataError, match=r"log.parquet: expected a parquet file, got one that cannot be read"):
        made("parquet", tmp_path / "log.parquet", tmp_path / "data")
