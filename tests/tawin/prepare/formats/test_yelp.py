"""The Yelp Open Dataset's reviews and businesses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ..folders import made, sequences, times, titles, write_objects


def review(user: str, business: str, date: str, stars: float = 4.0) -> dict[str, Any]:
    return {
        "review_id": "KU_O5udG6zpxOg-VcAEodg",
        "user_id": user,
        "business_id": business,
        "stars": stars,
        "useful": 0,
        "funny": 0,
        "cool": 0,
        "text": "If you decide to eat here, just be aware it is going to take about 2 hours.",
        "date": date,
    }


REVIEWS = [
    review("mh_-eMZ6K5RLWhZyISBhwA", "XQfwVwDr-v0ZS3_CbbE5Xw", "2018-07-07 22:09:11"),
    review("mh_-eMZ6K5RLWhZyISBhwA", "7ATYjTIgM3jUlt4UM3IypQ", "2012-01-03 15:28:18"),
    review("mh_-eMZ6K5RLWhZyISBhwA", "YjUWPpI6HXG530lwP-fb2A", "2014-02-05 20:30:30"),
    review("mh_-eMZ6K5RLWhZyISBhwA", "XQfwVwDr-v0ZS3_CbbE5Xw", "2018-07-08 22:09:11"),
]
BUSINESSES = [
    {"business_id": "XQfwVwDr-v0ZS3_CbbE5Xw", "name": "Turning Point of North Wales", "is_open": 1, "attributes": None},
    {"business_id": "7ATYjTIgM3jUlt4UM3IypQ", "name": "Body Cycle Spinning Studio"},
    {"name": "no id"},
]


@pytest.mark.parametrize("prefix", ["yelp_academic_dataset_", ""])
def test_reviews_and_businesses_become_sequences_with_names(tmp_path: Path, prefix: str) -> None:
    write_objects(tmp_path / f"{prefix}review.json", *REVIEWS)
    write_objects(tmp_path / f"{prefix}business.json", *BUSINESSES)
    write_objects(tmp_path / f"{prefix}tip.json", {"text": "not read"})
    report = made("yelp", tmp_path, tmp_path / "data", max_malformed=0.5)
    assert list(sequences(tmp_path / "data").values()) == [
        ["7ATYjTIgM3jUlt4UM3IypQ", "YjUWPpI6HXG530lwP-fb2A", "XQfwVwDr-v0ZS3_CbbE5Xw", "XQfwVwDr-v0ZS3_CbbE5Xw"]
    ]
    assert times(tmp_path / "data")[0][0] == 1_325_604_498_000
    assert titles(tmp_path / "data")["7ATYjTIgM3jUlt4UM3IypQ"] == "Body Cycle Spinning Studio"
    assert titles(tmp_path / "data")["YjUWPpI6HXG530lwP-fb2A"] is None
    assert report["malformed"] == [f"{tmp_path / f'{prefix}business.json'}, line 3: expected 'business_id', got none"]


def test_dates_and_stars_choose(tmp_path: Path) -> None:
    rows = [
        (1, "2016-09-30"),
        (2, "2016-10-01"),
        (3, "2017-01-01"),
        (4, "2018-11-30"),
        (5, "2018-12-01"),
        (6, "2018-01-01"),
    ]
    reviews = (review("u", f"b{n}", f"{date} 00:00:00", stars=1.0 if n == 6 else 3.0) for n, date in rows)
    path = write_objects(tmp_path / "review.json.gz", *reviews)
    report = made("yelp", path, tmp_path / "data", after="2016-10-01", before="2018-12-01", min_rating=3)
    assert sequences(tmp_path / "data") == {"u": ["b2", "b3", "b4"]}
    assert (report["counts"]["outside_dates"], report["counts"]["below_min_rating"]) == (2, 1)


def test_a_date_that_is_none_is_malformed(tmp_path: Path) -> None:
    path = write_objects(tmp_path / "review.json", *REVIEWS, review("u", "b", "07/07/2018"))
    report = made("yelp", path, tmp_path / "data", max_malformed=0.5)
    assert report["malformed"] == [f"{path}, line 5: expected dates like 2018-07-07, got '07/07/2018'"]
