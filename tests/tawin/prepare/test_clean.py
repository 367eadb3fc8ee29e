"""Order, repeats and k-core, each against a plain loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tawin.prepare.clean import Duplicates, k_core, not_repeated, order_by_time, renumber

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 3)), max_size=40)


def columns(rows: list[tuple[int, int, int]]) -> list[np.ndarray]:
    return list(np.array(rows, dtype=np.int64).reshape(-1, 3).T)


def core_by_loop(pairs: list[tuple[int, int]], minimum: int) -> list[int]:
    """Takes one user or item with too few rows away at a time, until there is none."""
    rows = list(range(len(pairs)))
    while True:
        for place in (0, 1):
            names = [pairs[row][place] for row in rows]
            few = next((name for name in names if names.count(name) < minimum), None)
            if few is not None:
                rows = [row for row in rows if pairs[row][place] != few]
                break
        else:
            return rows


@settings(max_examples=200)
@given(rows=ROWS, minimum=st.integers(0, 5))
def test_a_k_core_is_what_is_left_when_one_after_another_is_taken_away(
    rows: list[tuple[int, int, int]], minimum: int
) -> None:
    users, items, _ = columns(rows)
    assert k_core(users, items, minimum).tolist() == core_by_loop([row[:2] for row in rows], minimum)


def test_a_k_core_may_need_many_rounds() -> None:
    # A chain: user n has items n and n + 1; the loose end takes the next link with it, all the way.
    users, items = np.repeat(np.arange(50), 2), np.arange(100) // 2 + np.arange(100) % 2
    assert k_core(users, items, 1).tolist() == list(range(100))
    assert len(k_core(users, items, 2)) == 0
    closed = np.where(items == 50, 0, items)  # a ring
    assert len(k_core(users, closed, 2)) == 100


@given(rows=ROWS, has_times=st.booleans())
def test_rows_go_by_user_and_time_and_equal_times_stay_in_their_order(
    rows: list[tuple[int, int, int]], has_times: bool
) -> None:
    users, _, times = columns(rows)
    expected = sorted(range(len(rows)), key=lambda row: (rows[row][0], rows[row][2] if has_times else 0))
    assert order_by_time(users, times if has_times else None).tolist() == expected


@settings(max_examples=200)
@given(rows=ROWS, has_times=st.booleans(), duplicates=st.sampled_from(["keep", "drop", "first"]))
def test_of_repeated_rows_the_first_is_kept(
    rows: list[tuple[int, int, int]], has_times: bool, duplicates: Duplicates
) -> None:
    rows = sorted(rows, key=lambda row: (row[0], row[2]))
    users, items, times = columns(rows)
    expected: list[bool] = []
    seen: set[Any] = set()
    for place, (user, item, time) in enumerate(rows):
        if duplicates == "first":
            key: Any = (user, item)
        elif duplicates == "drop" and has_times:
            key = (user, item, time)
        elif duplicates == "drop":
            expected.append(place == 0 or rows[place - 1][:2] != (user, item))
            continue
        else:
            key = place
        expected.append(key not in seen)
        seen.add(key)
    assert not_repeated(users, items, times if has_times else None, duplicates).tolist() == expected


@pytest.mark.parametrize(
    ("codes", "occurring", "places"), [([], [], []), ([0], [0], [0]), ([7, 2, 7, 0], [0, 2, 7], [2, 1, 2, 0])]
)
def test_codes_are_numbered_anew_without_gaps(codes: list[int], occurring: list[int], places: list[int]) -> None:
    found, renumbered = renumber(np.array(codes, dtype=np.int32))
    assert (found.tolist(), renumbered.tolist()) == (occurring, places)


def test_the_last_of_repeated_items_or_none_that_repeats_the_one_before_is_kept() -> None:
    users, items = np.array([0, 0, 0, 0, 0, 1]), np.array([7, 7, 8, 7, 8, 8])
    times = np.arange(6)
    assert not_repeated(users, items, times, "last").tolist() == [False, False, False, True, True, True]
    assert not_repeated(users, items, times, "consecutive").tolist() == [True, False, True, True, True, True]
