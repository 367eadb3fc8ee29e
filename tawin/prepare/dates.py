"""Dates, one at a time, as milliseconds since 1970: ISO, day and month in either order, and numbers that spell a date.

UTC where nothing names an offset. Which of them the times of a log are is decided in `times`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

from .ids import MISSING

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EXCEL_DAYS = (32_874, 73_051)  # 1990 to 2099; as seconds they are the first day of 1970
_EXCEL_1970 = 25_569
_CALENDAR_YEARS = range(1990, 2100)
_CALENDAR_DIGITS = (8, 10, 12, 14, 17)  # to the day, the hour, the minute, the second, the millisecond
_TIME = r"(?:[ T,]+(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?\s*([AaPp][Mm])?)?\s*(UTC|GMT|Z|[+-]\d{2}:?\d{2})?"
_YEAR_FIRST = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})" + _TIME, re.ASCII)
_YEAR_LAST = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})" + _TIME, re.ASCII)


def read_date(text: str) -> int:
    """An ISO date or date and time, also with slashes or dots, single digits, or UTC behind it. ValueError."""
    text = text.strip()
    try:
        return _milliseconds(datetime.fromisoformat(text.removesuffix(" UTC")))
    except ValueError:
        found = _YEAR_FIRST.fullmatch(text)
        if found is None:
            raise
        year, _, month, day, *time = found.groups()
        return _at(int(year), int(month), int(day), time)


def numeric_date(text: str, day_first: bool) -> int | None:
    """Dates like 13.09.2020, 12/1/2010 8:26 or 9/13/2020 8:26:00 PM. None for what is none in that order."""
    found = _YEAR_LAST.fullmatch(text.strip())
    if found is None:
        return None
    first, _, second, year, *time = found.groups()
    day, month = (first, second) if day_first else (second, first)
    try:
        return _at(int(year), int(month), int(day), time)
    except ValueError:
        return None


def calendar_number(number: int | float) -> int | None:
    """A number whose digits are year, month, day and perhaps the time of day. None for any other."""
    if not 1e7 < number < 1e17 or number != int(number):
        return None
    digits = str(int(number))
    if len(digits) not in _CALENDAR_DIGITS or int(digits[:4]) not in _CALENDAR_YEARS:
        return None
    hour, minute, second = (int(digits[place : place + 2] or 0) for place in (8, 10, 12))
    try:
        found = datetime(int(digits[:4]), int(digits[4:6]), int(digits[6:8]), hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    return _milliseconds(found) + int(digits[14:] or 0)


def excel_day(number: int | float) -> int:
    """Days since the end of 1899, with the time of day behind the point."""
    return round((number - _EXCEL_1970) * 86_400_000)


def strptime(value: object, time_format: str) -> int | None:
    """A time as `datetime.strptime` reads it, also of a number that pandas has made a float. None: it cannot."""
    text = str(value).strip()
    for attempt in dict.fromkeys((text, text.removesuffix(".0"))):
        try:
            return _milliseconds(datetime.strptime(attempt, time_format))
        except (ValueError, OverflowError):
            continue
    return None


def missing_time(value: object) -> bool:
    """Whether that is a time that is not there."""
    return value is None or value != value or (isinstance(value, str) and value.strip() in {*MISSING, "NaT"})


def _at(year: int, month: int, day: int, time: list[str | None]) -> int:
    """time: hour, minute, second, their fraction, AM or PM, and the offset. ValueError for what no calendar has."""
    hour, minute, second = (int(part or 0) for part in time[:3])
    if time[4] is not None:
        if not 1 <= hour <= 12:
            raise ValueError(f"expected 1 to 12 with AM and PM, got {hour}")
        hour = hour % 12 + (12 if time[4].lower() == "pm" else 0)
    fraction = int((time[3] or "0").ljust(6, "0")[:6])
    offset = time[5] or "Z"
    zone = UTC
    if offset[0] in "+-":
        minutes = int(offset[1:3]) * 60 + int(offset[-2:])
        zone = timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))
    return _milliseconds(datetime(year, month, day, hour, minute, second, fraction, tzinfo=zone))


def _milliseconds(found: datetime) -> int:
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    since = found - EPOCH
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


def date_text(milliseconds: int) -> str:
    """As a message has it; a year that no calendar has is left out of it."""
    try:
        return f"{EPOCH + timedelta(milliseconds=milliseconds):%Y-%m-%d %H:%M:%S}"
    except OverflowError:
        return f"{milliseconds} ms"
