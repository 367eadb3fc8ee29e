"""Amazon reviews of 2014, 2018 and 2023, in the form in which they are published."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from tawin.data.columns import DataError

from ..folders import made, sequences, times, titles, write, write_objects


def review_2018(user: str, item: str, day: int, rating: float = 5.0) -> dict[str, Any]:
    return {
        "overall": rating,
        "vote": "2",
        "verified": True,
        "reviewTime": "01 1, 2018",
        "reviewerID": user,
        "asin": item,
        "style": {"Size:": " Large"},
        "reviewerName": "Abbey",
        "reviewText": "I now have 4 of the 5 available colors of this shirt...\n\nLovely \u2028 \u00e9",
        "summary": "Comfy, flattering",
        "unixReviewTime": 1_514_764_800 + 86_400 * day,
    }


def review_2023(user: str, item: str, time: int) -> dict[str, Any]:
    return {
        "rating": 4.0,
        "title": "Such a lovely scent",
        "text": "This spray is really nice.",
        "images": [],
        "asin": "B00VARIANT",
        "parent_asin": item,
        "user_id": user,
        "timestamp": time,
        "helpful_vote": 0,
        "verified_purchase": True,
    }


REVIEWS = [
    review_2018("A2", "B1", 2),
    review_2018("A1", "B3", 3, rating=1.0),
    review_2018("A1", "B1", 1),
    review_2018("A2", "B2", 2),
    review_2018("A1", "B2", 2),
    review_2018("A2", "B3", 0),
    review_2018("A1", "B1", 1),  # once more
]
META = [
    {"category": ["Office"], "title": "Pen &amp; Paper\n  8.5&rdquo;", "also_buy": ["B2"], "asin": "B1", "rank": []},
    {"title": "var aPageStart = (new Date()).getTime();", "asin": "B2"},
    {"title": "", "asin": "B3"},
    {"title": "Second <span id='x'> entry", "asin": "B3"},
    {"title": "Third entry", "asin": "B3"},
    {"title": "Nobody has it", "asin": "B9"},
]


@pytest.mark.parametrize("names", [("Office_5.json", "meta_Office.json"), ("Office_5.json.gz", "meta_Office.json.gz")])
def test_reviews_of_2018_become_sequences_with_titles(tmp_path: Path, names: tuple[str, str]) -> None:
    write_objects(tmp_path / "source" / names[0], *REVIEWS)
    write_objects(tmp_path / "source" / names[1], *META)
    report = made("amazon2018", tmp_path / "source", tmp_path / "data")
    assert sequences(tmp_path / "data") == {"A2": ["B3", "B1", "B2"], "A1": ["B1", "B2", "B3"]}
    assert titles(tmp_path / "data") == {"B1": "Pen & Paper 8.5”", "B2": None, "B3": "Third entry"}
    assert times(tmp_path / "data")[0] == [1_514_764_800_000 + 86_400_000 * day for day in (0, 2, 2)]
    assert report["counts"] | {"before_k_core": 0, "after_k_core": 0} == {
        "read": 7,
        "without_user": 0,
        "without_item": 0,
        "below_min_rating": 0,
        "outside_dates": 0,
        "duplicates": 1,
        "before_k_core": 0,
        "after_k_core": 0,
        "items_in_catalogue": 3,
        "titles": 2,
    }
    assert report["files"] == [
        {"file": names[0], "lines": 7, "malformed": 0},
        {"file": names[1], "lines": 6, "malformed": 0},
    ]


def test_malformed_reviews_are_counted_by_line_and_the_others_are_read(tmp_path: Path) -> None:
    path = write_objects(tmp_path / "Office.json", *REVIEWS, {"asin": "B1"}, {**REVIEWS[0], "unixReviewTime": None})
    with path.open("ab") as file:
        file.write(b'{"reviewerID": "A1", "asin"\n[1, 2]\n\n"text"\n{"a": ' + b"[" * 100_000 + b"\n")
    report = made("amazon2018", path, tmp_path / "data", max_malformed=0.7)
    assert report["files"] == [{"file": "Office.json", "lines": 14, "malformed": 6}]
    assert [example.removeprefix(f"{path}, line ") for example in report["malformed"]] == [
        "8: expected 'reviewerID', got none",
        "9: expected a time, got none",
        "10: expected a JSON object, got none: Expecting ':' delimiter: line 1 column 28 (char 27)",
        "11: expected a JSON object, got a list",
        "13: expected a JSON object, got a str",
        report["malformed"][5].removeprefix(f"{path}, line "),
    ]
    assert report["malformed"][5].startswith(f"{path}, line 14: expected a JSON object, got none: ")
    assert len(sequences(tmp_path / "data")["A1"]) == 3


def test_metadata_of_2014_is_read_though_it_is_python_and_no_json(tmp_path: Path) -> None:
    reviews = write_objects(tmp_path / "reviews_Office_5.json", *REVIEWS)
    meta = write(
        tmp_path / "meta.json.gz",
        "{'asin': 'B1', 'title': \"Kid's pen\", 'salesRank': {'Office': 5}, 'categories': [['Office']]}",
        "{'asin': 'B2', 'title': __import__('os').getcwd()}",  # is not run
    )
    report = made("amazon2018", reviews, tmp_path / "data", items=meta, max_malformed=0.5)
    assert titles(tmp_path / "data") == {"B1": "Kid's pen", "B2": None, "B3": None}
    assert report["malformed"][0].startswith(f"{meta}, line 2: expected a JSON object, got none: malformed node")


def test_halves_of_characters_are_no_ids_and_are_replaced_in_titles(tmp_path: Path) -> None:
    write_objects(tmp_path / "Office.json", *REVIEWS, review_2018("A1", "B\ud83d", 9), review_2018("A\udcff", "B1", 9))
    meta = [{"asin": "B1", "title": "Pen \ud83d"}, {"asin": "B2", "title": "Ink \U0001f58b"}]
    write_objects(tmp_path / "meta_Office.json", *meta)
    report = made("amazon2018", tmp_path, tmp_path / "data", max_malformed=0.5)
    path = tmp_path / "Office.json"
    assert report["malformed"] == [
        f"{path}, line 8: expected the item in whole characters, got 'B\\ud83d'",
        f"{path}, line 9: expected the user in whole characters, got 'A\\udcff'",
    ]
    assert titles(tmp_path / "data") == {"B1": "Pen \ufffd", "B2": "Ink \U0001f58b", "B3": None}
    python = write(
        tmp_path / "2014.json", r"{'asin': 'B1', 'title': '\ud83d'}", r"{'asin': 'B2', 'title': '\ud83d\udd8b'}"
    )
    made("amazon2018", path, tmp_path / "more", max_malformed=0.5, items=python)
    assert titles(tmp_path / "more") == {"B1": "\ufffd", "B2": "\U0001f58b", "B3": None}


def test_ratings_only_of_2018_are_item_user_rating_time(tmp_path: Path) -> None:
    path = write(tmp_path / "Office.csv", "B1,A1,5.0,100", "B2,A1,2.0,50", "B3,A1,4.0,75", "B3,A1", "B3,A1,4.0,soon")
    report = made("amazon2018", path, tmp_path / "data", max_malformed=0.5)
    assert sequences(tmp_path / "data") == {"A1": ["B2", "B3", "B1"]}
    assert report["malformed"] == [
        f"{path}, line 4: expected item, user, rating, time, got 2 fields",
        f"{path}, line 5: expected seconds since 1970 or a date like 2018-07-07 or 2018-07-07 22:09:11, got 'soon'",
    ]


def test_reviews_of_2023_go_by_parent_item_and_milliseconds_and_repeats_by_the_first(tmp_path: Path) -> None:
    time = 1_588_687_728_923
    reviews = [("U1", "B1", 2), ("U1", "B2", 1), ("U1", "B1", 0), ("U1", "B3", 3)]
    write_objects(tmp_path / "All_Beauty.jsonl", *(review_2023(u, i, time + t) for u, i, t in reviews))
    write_objects(tmp_path / "meta_All_Beauty.jsonl", {"parent_asin": "B1", "title": "Spray", "price": None})
    report = made("amazon2023", tmp_path, tmp_path / "data")
    assert sequences(tmp_path / "data") == {"U1": ["B1", "B2", "B3"]}
    assert times(tmp_path / "data") == [[time, time + 1, time + 3]]
    assert report["counts"]["duplicates"] == 1
    assert titles(tmp_path / "data") == {"B1": "Spray", "B2": None, "B3": None}


@pytest.mark.parametrize("header", [["user_id,parent_asin,rating,timestamp"], []])
def test_ratings_only_of_2023_are_read_with_and_without_their_header(tmp_path: Path, header: list[str]) -> None:
    time = 1_588_687_728_923
    rows = [f"U1,B{item},{item}.0,{time - item}" for item in (1, 2, 3, 4)]
    path = write(tmp_path / "Beauty.csv.gz", *header, *rows, end=b"\r\n")
    report = made("amazon2023", path, tmp_path / "data", min_rating=2.0)
    assert sequences(tmp_path / "data") == {"U1": ["B4", "B3", "B2"]}
    assert report["counts"]["below_min_rating"] == 1


def test_one_of_several_categories_has_to_be_named(tmp_path: Path) -> None:
    for name in ("Office", "Toys"):
        write_objects(tmp_path / f"{name}_5.json", *(review_2018("A1", f"{name}{item}", item) for item in range(3)))
        write_objects(tmp_path / f"meta_{name}.json", {"asin": f"{name}1", "title": name})
    with pytest.raises(DataError, match=r"one file of reviews, found Office_5.json, Toys_5.json; .* --category"):
        made("amazon2018", tmp_path, tmp_path / "data")
    made("amazon2018", tmp_path, tmp_path / "data", category="Toys")
    assert titles(tmp_path / "data") == {"Toys0": None, "Toys1": "Toys", "Toys2": None}


@pytest.mark.parametrize(
    ("source", "items", "message"),
    [
        ("absent.json", None, r"absent.json: expected reviews, or a folder with them, found no such file"),
        ("empty", None, r"empty: expected reviews \(\*.json or \*.jsonl or \*.csv, plain or .gz\), found none"),
        ("there.json", "absent.json", r"absent.json: expected metadata of items, found no such file"),
    ],
)
def test_files_that_are_not_there_are_named(tmp_path: Path, source: str, items: str | None, message: str) -> None:
    (tmp_path / "empty").mkdir()
    write_objects(tmp_path / "there.json", *REVIEWS)
    with pytest.raises(DataError, match=message):
        made("amazon2018", tmp_path / source, tmp_path / "data", items=tmp_path / items if items else None)


def test_nothing_is_written_where_a_file_is_cut_off_or_of_another_release(tmp_path: Path) -> None:
    path = write_objects(tmp_path / "Office.json.gz", *(review_2018(f"A{n}", "B1", n) for n in range(500)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"Office.json.gz: expected a whole gzip file"):
        made("amazon2018", path, tmp_path / "data")
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"got 500 of 500; the first:\n.*line 1: expected 'user_id', got none"):
        made("amazon2023", path, tmp_path / "data")
    assert len(gzip.decompress(whole).splitlines()) == 500
    assert [entry.name for entry in tmp_path.iterdir()] == ["Office.json.gz"]
