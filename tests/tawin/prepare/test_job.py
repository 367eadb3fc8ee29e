"""A log becomes a data folder: against the same in plain Python, and what the report says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tawin.data.columns import DataError
from tawin.data.dataset import load_dataset
from tawin.prepare import FORMATS, Columns, Options, prepare
from tools.fuzz.prepare import by_loop

from .folders import Row, made, sequences, times, write, write_log

ROW = st.tuples(st.sampled_from("abcde"), st.sampled_from("vwxyz"), st.integers(0, 5), st.integers(1, 5))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROW, max_size=60),
    minimum=st.integers(0, 4),
    min_rating=st.integers(1, 4),
    duplicates=st.sampled_from(["keep", "drop", "first"]),
)
def test_a_log_becomes_what_a_loop_over_it_gives(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, int, int]],
    minimum: int,
    min_rating: int,
    duplicates: str,
) -> None:
    folder = tmp_path_factory.mktemp("job")
    lines = (",".join(map(str, row)) for row in rows)
    path = write(folder / "log.csv", "user,item,time,rating", *lines)
    expected = by_loop(rows, minimum, min_rating, duplicates)
    options: dict[str, Any] = {"min_interactions": minimum, "min_rating": min_rating, "duplicates": duplicates}
    if not any(len(items) >= 3 for items in expected.values()):
        with pytest.raises(DataError, match=r"expected (interactions|users with at least 3 items), got none"):
            made("csv", path, folder / "data", **options)
        assert not (folder / "data").exists()
        return
    report = made("csv", path, folder / "data", **options)
    assert sequences(folder / "data") == expected
    assert report["counts"]["after_k_core"] == {
        "users": len(expected),
        "items": len({item for items in expected.values() for item in items}),
        "interactions": sum(map(len, expected.values())),
    }
    dataset = load_dataset(folder / "data")
    assert len(dataset.sequences) + dataset.users_left_out == len(expected)


def test_the_report_is_in_the_folder_and_says_what_was_asked_and_what_was_left_out(tmp_path: Path) -> None:
    rows = [f"{user},{item},{1_700_000_000 + 100 * user + item}" for user in range(5) for item in range(6)]
    path = write(tmp_path / "log.csv.gz", "who,item,time", *rows, rows[0], "9,9,1700000009", "broken")
    options = Options(min_interactions=5, max_malformed=0.1, columns=Columns(user="who"))
    report = prepare("csv", path, tmp_path / "data", options)
    assert json.loads((tmp_path / "data" / "prepare.json").read_text()) == report
    assert report == {
        "format": "csv",
        "source": "log.csv.gz",
        "files": [{"file": "log.csv.gz", "lines": 34, "malformed": 1}],
        "options": {
            "min_interactions": 5,
            "max_malformed": 0.1,
            "duplicates": "drop",
            "columns": {"user": "who", "has_header": True, "has_times": True, "time_unit": "auto"},
        },
        "counts": {
            "read": 32,
            "without_user": 0,
            "without_item": 0,
            "below_min_rating": 0,
            "outside_dates": 0,
            "duplicates": 1,
            "before_k_core": {"users": 6, "items": 7, "interactions": 31},
            "after_k_core": {"users": 5, "items": 6, "interactions": 30},
            "items_in_catalogue": 6,
            "titles": 0,
        },
        "times": {
            "read_as": "seconds since 1970",
            "first": "2023-11-14 22:13:20",
            "last": "2023-11-14 22:20:05",
        },
        "malformed": [f"{path}, line 34: expected 3 fields, as the first line has, got 1"],
        "notes": [],
    }


def test_a_file_whose_name_is_no_text_is_read_and_named_in_the_report(tmp_path: Path) -> None:
    path = write(tmp_path / "log \udcff.csv", "user,item,time", "1,2,3", "1,3,4", "1,4,5")
    report = made("csv", path, tmp_path / "data")
    assert json.loads((tmp_path / "data" / "prepare.json").read_text()) == report
    assert report["source"] == "log \udcff.csv"


def test_nothing_is_read_where_the_folder_holds_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("mine")
    with pytest.raises(DataError, match=r"data: expected a new or an empty folder"):
        prepare("csv", tmp_path / "absent.csv", tmp_path / "data")


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"format: expected one of csv, parquet, amazon2018, .*, got 'xml'"):
        prepare("xml", tmp_path, tmp_path / "data")


MS = 1_600_000_000_000
MISSING = (None, "nan", "NaN", "NULL", "null", "\\N", "None", "NA", "")


def rows_of(users: str, items: int) -> list[Row]:
    return [(user, str(item), MS + 1000 * item) for item in range(items) for user in users]


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("missing", MISSING)
def test_rows_without_a_user_or_an_item_are_counted_and_are_none_of_them(
    tmp_path: Path, format_name: str, missing: str | None
) -> None:
    if format_name == "s3rec" and not missing:
        pytest.skip("a line of words has no empty word")
    rows: list[Row] = rows_of("12", 5)
    rows[4:4] = [(missing, "1", MS), (missing, "2", MS + 1)]
    rows += [("1", missing, MS + 9_000), ("2", missing, MS + 9_000)]
    report = made(format_name, write_log(tmp_path, format_name, rows), tmp_path / "data", max_malformed=0.0)
    expected = [str(item) for item in range(5)]
    assert sequences(tmp_path / "data") == {"1": expected, "2": expected}
    counts = report["counts"]
    # A window ends in one of its rows, and a line of a user is one row.
    users = 1 if format_name in ("minionerec", "rere", "s3rec") else 2
    assert (counts["without_user"], counts["without_item"]) == (users, 2)
    assert report["malformed"] == [] and report["files"][0]["malformed"] == 0
    assert report["files"][0]["without_user"] == users and report["files"][0]["without_item"] == 2


@pytest.mark.parametrize("format_name", FORMATS)
def test_whole_numbers_that_pandas_has_made_floats_are_the_same_ids(tmp_path: Path, format_name: str) -> None:
    rows = rows_of("12", 3) + [(f"{user}.0", f"{item}.0", MS + 1000 * item) for item in (3, 4) for user in "12"]
    if format_name == "s3rec":  # which has a line a user
        rows = [(user, f"{item}.0", time) for user, item, time in rows_of("12", 5)]
    made(format_name, write_log(tmp_path, format_name, rows), tmp_path / "data")
    expected = [str(item) for item in range(5)]
    if format_name in ("minionerec", "rere"):  # whose windows of the users 1 and 1.0 follow on nothing
        assert set(sequences(tmp_path / "data")) == {"1", "2"}
    else:
        assert sequences(tmp_path / "data") == {"1": expected, "2": expected}
    assert set(pq.read_table(tmp_path / "data" / "items.parquet")["item_id"].to_pylist()) == set(range(5))


@pytest.mark.parametrize("format_name", FORMATS)
def test_where_everything_is_bad_the_reasons_are_still_said(tmp_path: Path, format_name: str) -> None:
    rows: list[Row] = [(None, str(item), MS + item) for item in range(9)]
    if format_name == "s3rec":
        rows = [("NULL", item, time) for _, item, time in rows]
    with pytest.raises(DataError, match=r"expected interactions, got none \(0 read, .*[1-9] without a user"):
        made(format_name, write_log(tmp_path, format_name, rows), tmp_path / "data", max_malformed=1.0)
    bad = [("1", "x" * 1001, MS + item) for item in range(9)]
    path = write_log(tmp_path, format_name, bad)
    with pytest.raises(DataError, match=r"[1-9] malformed\); the first:\n  .*(line|row) \d: expected ") as caught:
        made(format_name, path, tmp_path / "data", max_malformed=1.0)
    assert "0 without a user" in str(caught.value)
    few = [*bad, ("1", "7", MS), ("1", "8", MS + 1)]
    with pytest.raises(DataError, match=r"(at least 3 items|interactions), got none.*\n? .*malformed.*; the first:"):
        made(format_name, write_log(tmp_path, format_name, few), tmp_path / "data", max_malformed=1.0)
    assert not (tmp_path / "data").exists()


def test_a_row_without_a_user_is_that_whatever_its_time_is(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user,item,time", *(f"1,{item},{MS}" for item in range(3)), ",1,soon", "NULL,,")
    report = made("csv", path, tmp_path / "data", max_malformed=0.0)
    assert report["counts"]["without_user"] == 2


@pytest.mark.parametrize("format_name", [name for name in FORMATS if name not in ("minionerec", "rere", "s3rec")])
def test_times_before_1990_are_counted_in_a_note_and_what_they_are_read_as_is_always_said(
    tmp_path: Path, format_name: str
) -> None:
    early = 86_400_000 * 100
    rows: list[Row] = [("1", "7", early), ("1", "8", MS), ("1", "9", MS + 1000), ("1", "6", MS + 1000)]
    report = made(format_name, write_log(tmp_path, format_name, rows), tmp_path / "data", max_malformed=0.5)
    said = report["times"]
    assert said["last"] == "2020-09-13 12:26:41"
    if report["files"][0]["malformed"]:  # 8640000000 is no number of milliseconds among such ones
        assert said["first"] == "2020-09-13 12:26:40" and report["notes"] == []
        return
    assert said["first"] == "1970-04-11 00:00:00"
    assert report["notes"] == [
        "1 of 4 times lie before 1990, from 1970-04-11 00:00:00 to 1970-04-11 00:00:00: the times are read as "
        f"{said['read_as']}, and may be something else"
    ]


@pytest.mark.parametrize("format_name", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("values", "first"),
    [
        ([20180707, 20180709, 20180708], "2018-07-07 00:00:00"),
        ([20180707.0, 20180709.0, 20180708.0], "2018-07-07 00:00:00"),
        ([20180707123000, 20180709123000, 20180708123000], "2018-07-07 12:30:00"),
        ([43288.5, 43290.25, 43289.0], "2018-07-07 12:00:00"),
        (["12/1/2010 8:26", "12/13/2010 8:26", "12/2/2010 8:26"], "2010-12-01 08:26:00"),
        (["13.09.2020", "15.09.2020", "14.09.2020"], "2020-09-13 00:00:00"),
        (["2019-10-01 00:00:00 UTC", "2019-10-03 00:00:00 UTC", "2019-10-02 00:00:00 UTC"], "2019-10-01 00:00:00"),
    ],
)
def test_dates_of_any_usual_kind_are_dates_in_every_table(
    tmp_path: Path, format_name: str, values: list[Any], first: str
) -> None:
    rows = [("1", item, time) for item, time in zip("789", values, strict=True)]
    report = made(format_name, write_log(tmp_path, format_name, rows), tmp_path / "data")
    assert sequences(tmp_path / "data") == {"1": ["7", "9", "8"]}
    assert report["times"]["first"] == first and report["notes"] == []


@pytest.mark.parametrize("format_name", ["csv", "parquet"])
def test_an_order_of_day_and_month_that_no_row_says_is_asked_for(tmp_path: Path, format_name: str) -> None:
    rows: list[Any] = [("1", item, f"{day}/3/2020 8:26") for item, day in (("7", 1), ("8", 12), ("9", 2))]
    path = write_log(tmp_path, format_name, rows)
    with pytest.raises(
        DataError, match=rf"{path}: expected dates that say .*'1/3/2020 8:26'; say it with --time-format"
    ):
        made(format_name, path, tmp_path / "data")
    for order, days in (("%d/%m", ["2020-03-01", "2020-03-12"]), ("%m/%d", ["2020-01-03", "2020-12-03"])):
        folder = tmp_path / order[1]
        report = made(format_name, path, folder, columns=Columns(time_format=f"{order}/%Y %H:%M"))
        assert [report["times"][end][:10] for end in ("first", "last")] == days
        assert sequences(folder) == {"1": ["7", "9", "8"]} and len(times(folder)[0]) == 3


MEMORY = """
import resource, sys
from pathlib import Path
from tawin.prepare import prepare

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

prepare("amazon2018", Path(sys.argv[1]), Path(sys.argv[3]))
before = peak()
report = prepare("amazon2018", Path(sys.argv[2]), Path(sys.argv[4]))
print(report["counts"]["read"], peak() - before)
"""


def test_the_texts_of_reviews_are_never_held(tmp_path: Path) -> None:
    review = '{"reviewerID": "A%d", "asin": "B%d", "unixReviewTime": %d, "reviewText": "%s"}'
    for name, size in (("small", 10), ("large", 20_000)):
        lines = (review % (row % 50, row // 50 % 50, row, "x" * size) for row in range(4000))
        write(tmp_path / f"{name}.json.gz", *lines)
    folders = [tmp_path / name for name in ("small.json.gz", "large.json.gz", "data", "more")]
    command = [sys.executable, "-c", MEMORY, *map(str, folders)]
    read, growth = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    # 80 MB of text pass through; a block of it is 1 MiB, and a few of those are alive at a time.
    assert read == 4000
    assert growth < 16 * 2**20
