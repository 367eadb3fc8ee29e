"""Interactions as they are gathered: which are wanted, and which are none."""

from __future__ import annotations

import pytest

from tawin.data.columns import DataError
from tawin.prepare.log import Log, Selection


def test_ids_are_numbered_as_they_come() -> None:
    log = Log(Selection())
    for user, item, time in (("b", "x", 3), ("a", "y", 2), ("b", "y", -1)):
        log.add(user, item, time)
    users, items, times, weights = log.arrays()
    assert (list(log.users), list(log.items)) == (["b", "a"], ["x", "y"])
    assert (users.tolist(), items.tolist()) == ([0, 1, 0], [0, 1, 1])
    assert times is not None and times.tolist() == [3, 2, -1] and weights is None


def test_unwanted_interactions_are_counted_and_their_ids_are_not_kept() -> None:
    log = Log(Selection(min_rating=4, after=10, before=20))
    rows = [("a", 10, "4"), ("b", 10, 3.5), ("c", 9, 5), ("d", 20, 5), ("e", 19, "4.0")]
    for user, time, rating in rows:
        log.add(user, "x", time, rating)  # type: ignore[arg-type]
    assert list(log.users) == ["a", "e"]
    assert (len(log), log.rows, log.below_min_rating, log.outside_dates) == (2, 5, 1, 2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("", "x", 1, 5), "expected the user, got none"),
        (("a", "", 1, 5), "expected the item, got none"),
        (("a", "x" * 1001, 1, 5), "expected the item in at most 1000 characters, got 1001"),
        (("a", "x\ud800", 1, 5), "expected the item in whole characters, got 'x.ud800'"),
        (("a", "x", 1, None), "expected a rating"),
        (("a", "x", 1, "good"), "expected a rating"),
        (("a", "x", 1, "nan"), "expected a rating"),
    ],
)
def test_what_is_no_interaction_is_refused_and_leaves_nothing(row: tuple, message: str) -> None:
    log = Log(Selection(min_rating=1))
    with pytest.raises(ValueError, match=message):
        log.add(*row)
    assert len(log) == log.rows == len(log.users) == len(log.items) == 0


def test_times_have_to_be_there_for_all_or_for_none() -> None:
    log = Log(Selection())
    log.add("a", "x", None)
    assert log.arrays()[2] is None
    log.add("a", "x", 5)
    with pytest.raises(DataError, match=r"a time in every row or in none, got 1 in 2 rows"):
        log.arrays()
    with pytest.raises(DataError, match=r"--after, --before: expected a source with times"):
        Log(Selection(after=5)).add("a", "x", None)
