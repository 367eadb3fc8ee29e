"""The S3-Rec release: a line a user."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tawin.data.columns import DataError

from ..folders import made, sequences, titles, write

LINES = ["1 1 2 3 4 5", "2 6 7 8 8 6 4 11 ", "3 4 12"]


def test_lines_become_sequences_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "Beauty.txt", *LINES)
    made("s3rec", path, tmp_path / "data", min_interactions=None)
    assert sequences(tmp_path / "data") == {line.split()[0]: line.split()[1:] for line in LINES}
    interactions = pq.read_table(tmp_path / "data" / "interactions.parquet")
    assert interactions.column_names == ["user_id", "item_ids"]  # there are no times
    assert interactions["user_id"].to_pylist() == [1, 2, 3]
    assert titles(tmp_path / "data")["12"] is None


def test_titles_may_come_from_a_csv(tmp_path: Path) -> None:
    items = write(tmp_path / "items.csv", "id,name", "4,Four", '12,"Twelve, the"', "99,Nobody's")
    made("s3rec", write(tmp_path / "Beauty.txt", *LINES), tmp_path / "data", items=items)
    assert {item: title for item, title in titles(tmp_path / "data").items() if title} == {
        "4": "Four",
        "12": "Twelve, the",
    }


def test_malformed_lines_are_counted_by_line(tmp_path: Path) -> None:
    path = write(tmp_path / "Beauty.txt", *LINES, "1 9", "4", f"5 {'x' * 1001}", f"{'y' * 1001} 1")
    report = made("s3rec", path, tmp_path / "data", max_malformed=0.7)
    assert report["malformed"] == [
        f"{path}, line 4: expected a line a user, got another one of user 1",
        f"{path}, line 5: expected items after user 4, got none",
        f"{path}, line 6: expected the item in at most 1000 characters, got 1001",
        f"{path}, line 7: expected the user in at most 1000 characters, got 1001",
    ]
    assert list(sequences(tmp_path / "data")) == ["1", "2", "3"]


def test_dates_and_ratings_are_refused_where_there_are_none(tmp_path: Path) -> None:
    path = write(tmp_path / "Beauty.txt", *LINES)
    with pytest.raises(DataError, match=r"--after, --before: expected a source with times, got one without"):
        made("s3rec", path, tmp_path / "data", after="2018-01-01")
    with pytest.raises(ValueError, match=r"expected a rating \(--min-rating needs one\), got None"):
        made("s3rec", path, tmp_path / "data", min_rating=3)
    assert not (tmp_path / "data").exists()
