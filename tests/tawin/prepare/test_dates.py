"""Single dates, as logs write them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tawin.prepare.dates import calendar_number, date_text, excel_day, missing_time, numeric_date, read_date, strptime

MS = 1_530_000_000_000  # 2018-06-26 08:00:00 UTC
POINTS = st.datetimes(datetime(1990, 1, 1), datetime(2099, 12, 31))


def milliseconds(point: datetime) -> int:
    return round(point.replace(tzinfo=UTC, microsecond=0).timestamp()) * 1000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2018-06-26 08:00:00", MS),
        ("2018-06-26T08:00:00Z", MS),
        ("2018-06-26 08:00:00 UTC", MS),
        ("2018-06-26 08:00 GMT", MS),
        ("2018-06-26T10:00:00+02:00", MS),
        ("2018-06-26 13:30:00 +0530", MS),
        ("2018-06-26T08:00:00.042", MS + 42),
        ("2018-06-26 08:00:00.042999999", MS + 42),
        ("2018/06/26 08:00:00", MS),
        ("2018/6/26 8:00", MS),
        ("2018.6.26", MS - 8 * 3_600_000),
        (" 2018-06-26 ", MS - 8 * 3_600_000),
        ("1970-01-02", 86_400_000),
        ("1969-12-31", -86_400_000),
    ],
)
def test_a_date_that_begins_with_its_year_is_read_to_the_millisecond(text: str, expected: int) -> None:
    assert read_date(text) == expected


@pytest.mark.parametrize(
    "text", ["", "07/07/2018", "2018-13-01", "2018/07-01", "2018-07-01 25:00", "tomorrow", "7.7.18"]
)
def test_what_is_no_date_with_its_year_first_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_date(text)


@pytest.mark.parametrize(
    ("text", "day_first", "month_first"),
    [
        ("13.09.2020", "2020-09-13 00:00:00", None),
        ("9/13/2020", None, "2020-09-13 00:00:00"),
        ("12/1/2010 8:26", "2010-01-12 08:26:00", "2010-12-01 08:26:00"),
        ("12-1-2010 08:26:09.5", "2010-01-12 08:26:09", "2010-12-01 08:26:09"),
        ("12/1/2010, 8:26:09 PM", "2010-01-12 20:26:09", "2010-12-01 20:26:09"),
        ("12/1/2010 12:26 am", "2010-01-12 00:26:00", "2010-12-01 00:26:00"),
        ("12/1/2010 12:26 pm UTC", "2010-01-12 12:26:00", "2010-12-01 12:26:00"),
        ("12/1/2010 08:26:00 -02:00", "2010-01-12 10:26:00", "2010-12-01 10:26:00"),
        ("12/1/2010 13:26 PM", None, None),
        ("31/31/2010", None, None),
        ("30/2/2010", None, None),
        ("1/2/10", None, None),
        ("1/2.2010", None, None),
        ("٣/1/2010", None, None),
    ],
)
def test_day_and_month_stand_in_either_order(text: str, day_first: str | None, month_first: str | None) -> None:
    for first, expected in ((True, day_first), (False, month_first)):
        found = numeric_date(text, first)
        assert (None if found is None else date_text(found)) == expected


@given(POINTS)
def test_a_date_in_any_usual_form_is_the_point_in_time_that_wrote_it(point: datetime) -> None:
    expected = milliseconds(point)
    for form in ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y/%m/%d %H:%M:%S", "%Y-%m-%d %H:%M:%S UTC"):
        assert read_date(point.strftime(form)) == expected
    for form, day_first in (("%d.%m.%Y %H:%M:%S", True), ("%m/%d/%Y %I:%M:%S %p", False)):
        assert numeric_date(point.strftime(form), day_first) == expected
        assert strptime(point.strftime(form), form) == expected
    assert abs(excel_day((expected / 1000) / 86_400 + 25_569) - expected) <= 1
    for form, unit in (("%Y%m%d%H%M%S", 1), ("%Y%m%d%H%M", 60), ("%Y%m%d%H", 3600), ("%Y%m%d", 86_400)):
        assert calendar_number(int(point.strftime(form))) == expected // (1000 * unit) * 1000 * unit
        assert calendar_number(float(point.strftime(form))) == expected // (1000 * unit) * 1000 * unit


@pytest.mark.parametrize(
    "number", [0, 20181301, 20180230, 20180707.5, 19891231, 21000101, 201807, 2018070725, -20180707]
)
def test_a_number_that_no_calendar_has_is_no_date(number: float) -> None:
    assert calendar_number(number) is None


def test_a_format_reads_text_and_numbers_that_pandas_has_made_floats() -> None:
    assert strptime("20180626.0", "%Y%m%d") == strptime(20180626, "%Y%m%d") == strptime(20180626.0, "%Y%m%d")
    assert strptime("2018-06-26 10:00 +0200", "%Y-%m-%d %H:%M %z") == MS
    assert strptime("26.6.2018", "%m/%d/%Y") is None


def test_a_time_that_is_not_there_is_told_from_one_that_is_none() -> None:
    assert all(missing_time(value) for value in (None, "", " ", "nan", "NaT", "NULL", "\\N", float("nan")))
    assert not any(missing_time(value) for value in (0, "0", "soon", False))
