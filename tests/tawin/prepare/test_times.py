"""Points in time in all the ways that logs write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tawin.prepare.times import TimeReader, Unit, read_date

SECOND = 1_530_000_000  # 2018-06-26 08:00:00 UTC
MS = SECOND * 1000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (SECOND, MS),
        (str(SECOND), MS),
        (f" {SECOND} ", MS),
        (f"{SECOND}.25", MS + 250),
        (float(SECOND), MS),
        (MS + 42, MS + 42),
        (str(MS * 1000 + 42_999), MS + 42),
        (MS * 1_000_000, MS),
        ("2018-06-26 08:00:00", MS),
        ("2018-06-26T08:00:00Z", MS),
        ("2018-06-26T10:00:00+02:00", MS),
        ("2018-06-26T08:00:00.042", MS + 42),
        ("2018-06-26", MS - 8 * 3_600_000),
        ("1969-12-31", -86_400_000),
        (0, 0),
        (-5, -5000),
    ],
)
def test_a_time_is_read_to_the_millisecond(value: str | int | float, expected: int) -> None:
    assert TimeReader().read(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("", "yesterday", "07/07/2018", "nan", "inf", float("nan"), None, True, [1], "2018-13-01"),
        *(10**400, "1" + 400 * "0", 1e306, "-1e306", "9" * 5000),  # no float holds them, or none their milliseconds
    ],
    ids=lambda value: repr(value)[:20],
)
@pytest.mark.parametrize("unit", ["auto", "s", "ns"])
def test_what_is_no_time_is_refused_in_a_few_words(value: object, unit: Unit) -> None:
    with pytest.raises(ValueError, match=r"^expected ") as caught:
        TimeReader(unit).read(value)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("first", "other"), [(SECOND, MS), (MS, SECOND), ("2018-06-26", SECOND), (SECOND, "2018-06-26"), (MS, "0")]
)
def test_a_time_of_another_kind_than_the_first_is_refused(first: str | int, other: str | int) -> None:
    reader = TimeReader()
    reader.read(first)
    with pytest.raises(ValueError, match=r"as the first one is, got .* \(--time-unit says it for certain\)"):
        reader.read(other)
    reader.read(first)


def test_a_unit_that_is_told_holds_for_numbers_of_any_size() -> None:
    reader = TimeReader("ms")
    assert [reader.read(value) for value in (5, "6", MS)] == [5, 6, MS]
    assert TimeReader("us").read(1_999) == 1
    with pytest.raises(ValueError, match=r"before the year 10000"):
        TimeReader("s").read(MS)
    with pytest.raises(ValueError, match=r"expected a time in s"):
        TimeReader("s").read("2018-06-26")


@given(st.lists(st.integers(0, 10**11 - 1), min_size=2))
def test_the_order_of_seconds_is_kept(seconds: list[int]) -> None:
    reader = TimeReader()
    read = [reader.read(str(value)) for value in seconds]
    assert sorted(range(len(read)), key=read.__getitem__) == sorted(range(len(read)), key=seconds.__getitem__)


def test_a_date_alone_begins_at_midnight_utc() -> None:
    assert read_date("1970-01-02") == 86_400_000
