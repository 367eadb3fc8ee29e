"""Ids of two places, compared and put in order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tawin.data.columns import DataError
from tawin.data.source_ids import order_of, places_of

IDS = st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=12, unique=True)


@given(ids=IDS, data=st.data())
def test_an_order_puts_the_ids_of_one_place_as_those_of_the_other(ids: list[str], data: st.DataObject) -> None:
    other = data.draw(st.permutations(ids))
    order = order_of(other, ids, "there")
    assert ids == (other if order is None else [other[place] for place in order])
    assert (order is None) == (ids == other)


def test_zeros_in_front_make_another_id() -> None:
    assert places_of(["007", "7", "a"], ["7", "007"]).tolist() == [1, 0, -1]
    assert places_of([], ["7"]).dtype == np.int64


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (["a", "b"], r"DATA: expected the 3 items .* 1 of them are missing \(c\), 0 of its 2 are new;"),
        (["a", "b", "c", "d"], r"0 of them are missing, 1 of its 4 are new \(d\);"),
        ([*"uvwxyz"], r"3 of them are missing \(a, b, c\), 6 of its 6 are new \(u, v, w, x, y, \.\.\.\);"),
        (["a", "b", "c", "c2"][::-1], r"1 of its 4 are new \(c2\);"),
    ],
)
def test_other_ids_are_refused_by_name_and_number(found: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        order_of(found, ["a", "b", "c"], "DATA")
