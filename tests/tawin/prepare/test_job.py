"""A log becomes a data folder: against the same in plain Python, and what the report says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.fuzz_prepare import by_loop
from tawin.columns import DataError
from tawin.data import load_dataset
from tawin.prepare import Columns, Options, prepare

from .folders import made, sequences, write

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
    rows = [f"{user},{item},{100 * user + item}" for user in range(5) for item in range(6)]
    path = write(tmp_path / "log.csv.gz", "who,item,time", *rows, rows[0], "9,9,9", "broken")
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
            "below_min_rating": 0,
            "outside_dates": 0,
            "duplicates": 1,
            "before_k_core": {"users": 6, "items": 7, "interactions": 31},
            "after_k_core": {"users": 5, "items": 6, "interactions": 30},
            "items_in_catalogue": 6,
            "titles": 0,
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
