"""MovieLens in its three forms: csv, `::` and the tabs of 100k."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ..folders import made, sequences, titles, write

FORMS = {
    "csv": (
        (
            "ratings.csv",
            ["userId,movieId,rating,timestamp", "7,31,2.5,1260759144", "7,10,3.0,12607590", "7,2,4.0,1300000000"],
        ),
        (
            "movies.csv",
            ["movieId,title,genres", '10,"American President, The (1995)",Comedy', "31,Les Misérables (1995),Drama"],
        ),
    ),
    "1m": (
        ("ratings.dat", ["7::31::2::1260759144", "7::10::3::12607590", "7::2::4::1300000000"]),
        (
            "movies.dat",
            ["10::American President, The (1995)::Comedy", "31::Les Misérables (1995)::Drama".encode("latin-1")],
        ),
    ),
    "100k": (
        ("u.data", ["7\t31\t2\t1260759144", "7\t10\t3\t12607590", "7\t2\t4\t1300000000"]),
        (
            "u.item",
            [
                "10|American President, The (1995)|01-Jan-1995||http://us.imdb.com/|0|1|0",
                "31|Les Misérables (1995)|01-Jan-1995||http://us.imdb.com/|0|0|1".encode("latin-1"),
            ],
        ),
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_form_gives_the_same_data(tmp_path: Path, form: str, end: bytes, suffix: str) -> None:
    for name, lines in FORMS[form]:
        write(tmp_path / "ml" / f"{name}{suffix}", *lines, end=end)
    report = made("movielens", tmp_path / "ml", tmp_path / "data")
    assert sequences(tmp_path / "data") == {"7": ["10", "31", "2"]}
    assert titles(tmp_path / "data") == {
        "10": "American President, The (1995)",
        "31": "Les Misérables (1995)",
        "2": None,
    }
    assert sum(file["malformed"] for file in report["files"]) == 0
    # Whole numbers stay what they are: a user may say them to `tawin recommend`.
    assert pq.read_table(tmp_path / "data" / "items.parquet")["item_id"].to_pylist() == [31, 10, 2]


def test_malformed_lines_are_counted_by_line(tmp_path: Path) -> None:
    rows = [f"1::{movie}::5::{1000 + movie}" for movie in range(1, 6)]
    ratings = write(tmp_path / "ratings.dat", *rows, "1::7::5", "1::7::5::soon", "::7::5::1", "", "1::9::x::9000")
    movies = write(tmp_path / "movies.dat", "1::One::Drama", "2", "::Nothing::")
    report = made("movielens", ratings, tmp_path / "data", items=movies, max_malformed=0.7, min_rating=3)
    assert report["malformed"] == [
        f"{ratings}, line 6: expected user, movie, rating, timestamp, got 3 fields",
        f"{ratings}, line 7: expected seconds since 1970 or a date like 2018-07-07 or 2018-07-07 22:09:11, got 'soon'",
        f"{ratings}, line 10: expected a rating (--min-rating needs one), got 'x'",
        f"{movies}, line 2: expected movie, title, ..., got 1 fields",
    ]
    assert [file.get("without_user") or file.get("without_item") for file in report["files"]] == [1, 1]
    assert titles(tmp_path / "data") == {"1": "One", "2": None, "3": None, "4": None, "5": None}
