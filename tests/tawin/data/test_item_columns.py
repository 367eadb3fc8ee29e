"""Conditions on the items' columns, against the same in plain Python, and what is refused."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest

from tawin.data.item_columns import matching

TABLE = pa.table(
    {
        "category": ["shoes", "hats", None, "shoes"],
        "price": [10.0, 99.5, 5.0, None],
        "stock": [0, 3, 2, 1],
        "new": [True, False, None, True],
        "added": pa.array([datetime.date(2026, 1, day) for day in (1, 2, 3, 4)], pa.date32()),
        "the brand": pa.array(["o'neil", "ours", "ours", "x"]).dictionary_encode(),
    }
)


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("category = 'shoes' and price < 100", [0]),
        ("category = 'shoes' or price >= 99.5", [0, 1, 3]),
        ("not category = 'shoes'", [1]),
        ("category is null or price is null", [2, 3]),
        ("price is not null AND NOT (stock in (0, 3))", [2]),
        ("category not in ('hats')", [0, 3]),
        ("category like 'sh%' and stock != 0", [3]),
        ("category not like '%a%'", [0, 3]),
        ("new = true and stock <> 1", [0]),
        ("added >= '2026-01-03'", [2, 3]),
        ("\"the brand\" = 'o''neil'", [0]),
        ("stock < 2.5 and stock > -1", [0, 2, 3]),
        ("stock = 1 or stock = 2 and price = 5", [2, 3]),
    ],
)
def test_a_condition_gives_the_rows_that_fit_it(condition: str, rows: list[int]) -> None:
    found = matching(TABLE, condition)
    assert found.dtype == np.int64 and found.tolist() == rows


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("", "expected a condition like .* got nothing"),
        ("colour = 'red'", "expected a column of the items, category, price, .*, got colour"),
        ("price = 'cheap'", "column 'price': expected a value of its type, double, got 'cheap'"),
        ("category < 3", "column 'category': expected a value of its type, string, got 3"),
        ("new = 'yes'", "column 'new': expected a value of its type, bool"),
        ("added > 'soon'", "column 'added': expected a value of its type, date32"),
        ("price like 'x'", "column 'price': expected text and a pattern for like"),
        ("price <", "expected a number, true, false or text in single quotes, got its end"),
        ("price < stock", "expected a number, .* got stock"),
        ("price < 3 price", "expected its end or and, or, got price"),
        ("(price < 3", r"expected \), got its end"),
        ("__import__('os')", "expected a column of the items, .* got __import__"),
        ("price < 3; drop", "expected names, values and comparisons, got '; drop'"),
        ("price < 0", "expected items that fit, got none of 4"),
        ("(" * 5000 + "price < 3", "expected at most 100 nested conditions"),
    ],
)
def test_what_is_no_condition_is_refused_with_what_was_expected(condition: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^--where .*{message}"):
        matching(TABLE, condition)
