"""What the times of a log are, by the look of all of them, and each read as that."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tawin.data.columns import DataError
from tawin.prepare.dates import date_text
from tawin.prepare.times import NAMES, Kind, TimeReader, Unit, choose_reader, require_format

SECOND = 1_530_000_000  # 2018-06-26 08:00:00 UTC
MS = SECOND * 1000
LOG = Path("log.csv")


def read(*values: Any, **told: Any) -> list[int]:
    """All of them, as a log that holds nothing else."""
    reader = choose_reader(iter(values), LOG, **told)
    return [reader.read(value) for value in values]


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
        ("2018-06-26 08:00:00 UTC", MS),
        ("2018-06-26", MS - 8 * 3_600_000),
        ("26.06.2018 08:00", MS),
        ("6/26/2018 8:00", MS),
        (20180626, MS - 8 * 3_600_000),
        ("20180626.0", MS - 8 * 3_600_000),
        (2018062608, MS),
        ("20180626080000", MS),
        (20180626080000042, MS + 42),
        (43277, MS - 8 * 3_600_000),
        ("43277.33333333333", MS),
        (0, 0),
    ],
)
def test_a_time_is_read_to_the_millisecond(value: str | int | float, expected: int) -> None:
    assert read(value) == [expected]


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "yesterday",
            "nan",
            "inf",
            float("nan"),
            None,
            True,
            [1],
            "2018-13-01",
            -5,
            "-62135596800000",
            "7 Jul 18",
        ),
        *(10**400, "1" + 400 * "0", 1e306, "-1e306", "9" * 5000),  # no float holds them, or none their milliseconds
    ],
    ids=lambda value: repr(value)[:20],
)
@pytest.mark.parametrize("unit", ["auto", "s", "ns"])
def test_what_is_no_time_is_refused_in_a_few_words(value: Any, unit: Unit) -> None:
    for others in ([], [SECOND], ["2018-06-26"], [20180626]):
        reader = choose_reader([*others, value], LOG, unit)
        with pytest.raises(ValueError, match=r"^expected ") as caught:
            reader.read(value)
        assert len(str(caught.value)) < 250


ONE_OF_EACH = {
    "s": SECOND,
    "ms": MS,
    "us": MS * 1000,
    "ns": MS * 1_000_000,
    "calendar": 20180626,
    "excel": 43277.5,
    "date": "2018-06-26",
    "day first": "26.06.2018",
    "month first": "06/26/2018",
}


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("other", ONE_OF_EACH)
def test_a_time_of_another_kind_than_most_is_refused_and_names_the_option(kind: Kind, other: str) -> None:
    most, value = ONE_OF_EACH[kind], ONE_OF_EACH[other]
    reader = choose_reader([value, most, most], LOG)
    assert reader.name == NAMES[kind]
    assert reader.read(most) > 0
    if other == kind:
        return
    if kind == "s" and other in ("calendar", "excel"):  # a count of seconds may be anything: it is noted, see `job`
        assert reader.read(value) == value * 1000
        return
    with pytest.raises(ValueError, match=r"as most times are, got .* \(--time-unit or --time-format says"):
        reader.read(value)


def test_the_order_of_day_and_month_is_that_of_the_first_date_that_can_only_be_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tawin.prepare.times.LOOKED_AT", 3)
    many = ["01/02/2020", "03/04/2020"] * 5
    assert [date_text(each)[:10] for each in read(*many, "01/13/2020")][:2] == ["2020-01-02", "2020-03-04"]
    assert [date_text(each)[:10] for each in read(*many, "13/01/2020")][:2] == ["2020-02-01", "2020-04-03"]
    for separator in "/.-":
        with pytest.raises(
            DataError, match=r"^log.csv: expected dates that say .* day, .*--time-format, like '%d/%m/%Y"
        ):
            read(*(each.replace("/", separator) for each in many))
    assert read(*many, time_format="%d/%m/%Y") == read(*many, "13/01/2020")[:-1]
    reader = choose_reader([*many, "01/13/2020", "13/01/2020"], LOG)  # the first that decides
    with pytest.raises(ValueError, match=r"expected dates with the month first, .* got '13/01/2020'"):
        reader.read("13/01/2020")


@given(st.data())
def test_dates_in_one_order_are_read_as_they_were_written_or_refused(data: st.DataObject) -> None:
    points = data.draw(st.lists(st.dates(datetime(1990, 1, 1).date(), datetime(2099, 1, 1).date()), min_size=1))
    form = data.draw(st.sampled_from(["%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%m-%d-%Y"]))
    texts = [point.strftime(form) for point in points]
    if all(point.day <= 12 for point in points):
        with pytest.raises(DataError, match="--time-format"):
            read(*texts)
        assert [date_text(each)[:10] for each in read(*texts, time_format=form)] == [str(point) for point in points]
    else:
        assert [date_text(each)[:10] for each in read(*texts)] == [str(point) for point in points]


def test_a_unit_that_is_told_holds_for_numbers_of_any_size() -> None:
    assert read(5, "6", MS, unit="ms") == [5, 6, MS]
    assert read(1_999, unit="us") == [1]
    assert read(20180707, 43288.5, unit="s") == [20_180_707_000, 43_288_500]
    with pytest.raises(ValueError, match=r"before the year 10000"):
        read(MS, unit="s")
    with pytest.raises(ValueError, match=r"expected seconds since 1970, got '2018-06-26'"):
        read("2018-06-26", unit="s")


def test_a_format_that_is_told_is_that_of_every_time() -> None:
    expected = datetime(2010, 12, 1, 8, 26, tzinfo=UTC).timestamp() * 1000
    assert read("12/1/2010 8:26", time_format="%m/%d/%Y %H:%M") == [expected]
    assert read(20180626, 20180626.0, "20180626.0", time_format="%Y%m%d") == [MS - 8 * 3_600_000] * 3
    with pytest.raises(ValueError, match=r"expected a time like %m/%d/%Y %H:%M \(--time-format\), got '2010-12-01'"):
        read("2010-12-01", time_format="%m/%d/%Y %H:%M")


@pytest.mark.parametrize("told", ["%H:%M", "%", "%Q", "dd.mm.yyyy", "%d.%m.", ""])
def test_a_format_that_says_no_year_is_refused(told: str) -> None:
    with pytest.raises(ValueError, match=r"^--time-format: expected what strptime reads and with a year, like"):
        require_format(told)


@pytest.mark.parametrize(
    "told", ["%d/%m/%Y", "%m/%d/%y %I:%M %p", "%Y-%m-%d %H:%M:%S UTC", "%Y%m%d", "%c", "%a %b %d %H:%M:%S %z %Y"]
)
def test_a_format_with_a_year_is_taken(told: str) -> None:
    require_format(told)


@given(st.lists(st.integers(0, 10**11 - 1), min_size=2))
def test_the_order_of_seconds_is_kept(seconds: list[int]) -> None:
    reader = TimeReader("s")
    found = [reader.read(str(value)) for value in seconds]
    assert sorted(range(len(found)), key=found.__getitem__) == sorted(range(len(found)), key=seconds.__getitem__)


@given(st.lists(st.integers(1, 32_873), min_size=1))
def test_row_numbers_in_place_of_times_are_kept_in_their_order(numbers: list[int]) -> None:
    assert read(*numbers, 100_000) == [1000 * number for number in numbers] + [100_000_000]
