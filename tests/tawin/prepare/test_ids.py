"""Which spellings are no id, and which are the same id."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tawin.prepare.ids import MISSING, MissingError, plain_id


@pytest.mark.parametrize("text", sorted(MISSING))
def test_a_value_that_is_missing_is_no_id(text: str) -> None:
    with pytest.raises(MissingError, match=r"^expected the user, got none$"):
        plain_id("user", text)


@pytest.mark.parametrize(
    "text", ["na", "Nan", "nil", "NANCY", "nullable", "N", "-", "0", "undefined", "007", "7.5", "07.0"]
)
def test_what_may_be_a_name_is_an_id_as_it_is(text: str) -> None:
    assert plain_id("item", text) == text


@given(st.integers(), st.integers(1, 3))
def test_a_whole_number_that_pandas_has_made_a_float_is_the_number(number: int, zeros: int) -> None:
    assert plain_id("item", f"{number}.{'0' * zeros}") == str(number) == plain_id("item", str(number))


@pytest.mark.parametrize("text", [".0", "-0.0", "1.0.0", "1e5", "1.0e5", "v1.0", "+1.0", "٣.0", "1.", "1.01"])
def test_what_only_looks_like_such_a_float_stays(text: str) -> None:
    assert plain_id("item", text) == text


@pytest.mark.parametrize("text", ["4.00638E+12", "1e+16", "-1.0E+06"])
def test_a_number_that_a_spreadsheet_has_rounded_is_no_id(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected the item with all its digits, got the rounded "):
        plain_id("item", text)
