"""Points in time, from whatever a log writes them as, to whole milliseconds since 1970 (UTC).

All times of a log are of one kind, which `choose_reader` finds by a look through them before they are read: most of
the first thousand say it, or where day and month could be either way round in all of these, the first that can only be
one. Every other time has to agree. A number is seconds, milliseconds, microseconds or nanoseconds, told apart by its
size, as all of these put 1973 to 5138 into ranges that do not overlap; below 1990 lie the numbers that are none of
them: calendar numbers (20180707) and the day numbers of spreadsheets (43288.5).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Literal

from ..data.columns import DataError
from .dates import EXCEL_DAYS, calendar_number, excel_day, missing_time, numeric_date, read_date, strptime

Unit = Literal["auto", "s", "ms", "us", "ns"]
Kind = Literal["s", "ms", "us", "ns", "calendar", "excel", "date", "day first", "month first", "timestamp"]
Value = str | int | float | None

LOOKED_AT = 1000  # times that say of which kind a log's are
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_SECONDS_END = 10**11  # in seconds: the year 5138; in milliseconds: 1973
_YEAR_10000 = 253_402_300_800_000
_LARGEST = _YEAR_10000 * 10**6  # in nanoseconds, the smallest unit
NAMES: dict[str, str] = {
    "s": "seconds since 1970",
    "ms": "milliseconds since 1970",
    "us": "microseconds since 1970",
    "ns": "nanoseconds since 1970",
    "calendar": "calendar numbers like 20180707",
    "excel": "day numbers of a spreadsheet, like 43288.5",
    "date": "dates like 2018-07-07",
    "day first": "dates with the day first, like 13.09.2020",
    "month first": "dates with the month first, like 9/13/2020",
    "timestamp": "points in time",
}
"""What times are, as it is said to the user."""


class TimeReader:
    """Reads the times of one log.

    kind: what they are; None: nothing that is known, so that each is refused. is_told: the kind was not found by the
    look of the times, so that a number's size says nothing against it. time_format: of `datetime.strptime`, in place of
    a kind. hint: what is said with a time that is not of the kind.
    """

    def __init__(
        self, kind: Kind | None, *, is_told: bool = True, time_format: str | None = None, hint: str = ""
    ) -> None:
        self._kind, self._is_told, self._format, self._hint = kind, is_told, time_format, hint
        self.name = f"times like {time_format}" if time_format is not None else NAMES[kind or "date"]

    def read(self, value: Value) -> int:
        """Milliseconds since 1970. ValueError, with the reason, for what is no time or not of the log's kind."""
        kind, found = self._kind, None
        if kind in _PER_SECOND:
            found = self._since_1970(value)
        elif self._format is not None:
            found = strptime(value, self._format)
        elif kind is not None:
            found = _READ[kind](value)
        if found is None:
            raise ValueError(self._refusal(value))
        if found >= _YEAR_10000:
            raise ValueError(f"expected a time before the year 10000, got {shown(value)}")
        return found

    def _since_1970(self, value: Value) -> int | None:
        number = _number(value)
        if (
            number is None or not 0 <= number < _LARGEST
        ):  # a whole number may be too large for any arithmetic with floats
            return None
        if not self._is_told and _unit_of(number) != self._kind:
            return None
        per_second = _PER_SECOND[self._kind or "s"]
        return number * 1000 // per_second if isinstance(number, int) else round(number * 1000 / per_second)

    def _refusal(self, value: Value) -> str:
        if missing_time(value):
            return "expected a time, got none"
        number = _number(value)
        if number is not None and not abs(number) < _LARGEST:
            return f"expected a time before the year 10000, got {shown(value)}"
        if number is not None and number < 0:
            return f"expected a time since 1970, got {shown(value)}"
        if self._format is not None:
            return f"expected a time like {self._format} (--time-format), got {shown(value)}"
        if _look(value) is None:
            dates = "2018-07-07 or 2018-07-07 22:09:11"
            return f"expected seconds since 1970 or a date like {dates}, got {shown(value)}{self._hint}"
        return f"expected {self.name}{'' if self._is_told else ', as most times are'}, got {shown(value)}{self._hint}"


def choose_reader(
    values: Iterable[Value], path: Path, unit: Unit = "auto", time_format: str | None = None
) -> TimeReader:
    """The reader of a log's times.

    Args:
        values: all times of the log; they are walked through as far as it takes, once.
        path: of the log, for messages.
        unit, time_format: what the user says of the times; then none is looked at.

    Raises:
        DataError: dates whose day and month could be either way round in every row.
    """
    if time_format is not None:
        return TimeReader(None, time_format=time_format)
    if unit != "auto":
        return TimeReader(unit, hint=" (--time-unit)")
    rest = iter(values)
    first = list(islice((value for value in rest if _look(value) is not None), LOOKED_AT))
    found = Counter(_look(value) for value in first).most_common(1)
    kind = found[0][0] if found else None
    if kind == "day first":  # or month first
        kind = _order(first, rest, path)
    return TimeReader(kind, is_told=False, hint=" (--time-unit or --time-format says what the times are)")


def _look(value: Value) -> Kind | None:
    """What a time is by its look; "day first" also for a month first. None for what is no time."""
    number = _number(value)
    if number is not None:
        if not 0 <= number < _LARGEST:
            return None
        if calendar_number(number) is not None:
            return "calendar"
        return "excel" if EXCEL_DAYS[0] <= number < EXCEL_DAYS[1] else _unit_of(number)
    if not isinstance(value, str):
        return None
    if _date(value) is not None:
        return "date"
    return None if numeric_date(value, True) is None and numeric_date(value, False) is None else "day first"


def _order(first: list[Value], rest: Iterable[Value], path: Path) -> Kind:
    """By the dates with a number above 12: most of the first ones, or the first one of the rest."""
    orders = [order for order in map(_only_order, first) if order is not None]
    if orders:
        return Counter(orders).most_common(1)[0][0]
    for value in rest:
        order = _only_order(value)
        if order is not None:
            return order
    example = next(value for value in first if _look(value) == "day first")
    raise DataError(
        f"{path}: expected dates that say which of their numbers is the day, got none with one above 12, the first "
        f"{shown(example)}; say it with --time-format, like '%d/%m/%Y %H:%M' or '%m/%d/%Y'"
    )


def _only_order(value: Value) -> Kind | None:
    """None for a date that could be either way round, or is none."""
    if not isinstance(value, str):
        return None
    day_first, month_first = numeric_date(value, True) is not None, numeric_date(value, False) is not None
    return None if day_first == month_first else "day first" if day_first else "month first"


def _date(value: Value) -> int | None:
    if not isinstance(value, str):
        return None
    try:
        return read_date(value)
    except ValueError:
        return None


def _calendar(value: Value) -> int | None:
    number = _number(value)
    return None if number is None else calendar_number(number)


def _excel(value: Value) -> int | None:
    number = _number(value)
    return None if number is None or not EXCEL_DAYS[0] <= number < EXCEL_DAYS[1] else excel_day(number)


_READ: dict[Kind, Callable[[Value], int | None]] = {
    "calendar": _calendar,
    "excel": _excel,
    "date": lambda value: None if _number(value) is not None else _date(value),
    "day first": lambda value: numeric_date(value, True) if isinstance(value, str) else None,
    "month first": lambda value: numeric_date(value, False) if isinstance(value, str) else None,
    "timestamp": lambda value: value if isinstance(value, int) and value > -_YEAR_10000 else None,
}


def _number(value: object) -> int | float | None:
    """None for what is no number, also for a text that spells none; NaN is none."""
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
        try:
            value = float(value)
        except ValueError:
            return None
    if type(value) is int:
        return value
    return value if type(value) is float and not math.isnan(value) else None


def shown(value: object) -> str:
    """As a message shows it: its beginning."""
    return repr(value)[:80]


def _unit_of(number: int | float) -> Literal["s", "ms", "us", "ns"]:
    if number < _SECONDS_END:
        return "s"
    return "ms" if number < _SECONDS_END * 10**3 else "us" if number < _SECONDS_END * 10**6 else "ns"


def require_format(time_format: str) -> None:
    """ValueError for what strptime cannot read, or what says no year."""
    then = datetime(2018, 7, 6, 22, 9, 11).astimezone()
    try:
        is_whole = datetime.strptime(then.strftime(time_format), time_format).year == then.year
    except ValueError:
        is_whole = False
    if not is_whole:
        raise ValueError(
            f"--time-format: expected what strptime reads and with a year, like '%d/%m/%Y %H:%M', got {time_format!r}"
        )
