"""Points in time, from whatever a log writes them as, to whole milliseconds since 1970 (UTC).

A number is seconds, milliseconds, microseconds or nanoseconds; which one is told by its size, as all of these put
1973 to 5138 into ranges that do not overlap. The first time of a log says which it is, and every other has to agree.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

Unit = Literal["auto", "s", "ms", "us", "ns"]
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_SECONDS_END = 10**11  # in seconds: the year 5138; in milliseconds: 1973
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_10000 = 253_402_300_800_000
_LARGEST = _YEAR_10000 * 10**6  # in nanoseconds, the smallest unit


class TimeReader:
    """Reads the times of one log, which are all of one kind."""

    def __init__(self, unit: Unit = "auto") -> None:
        self._unit: str | None = None if unit == "auto" else unit
        self._is_told = unit != "auto"

    def read(self, value: str | int | float) -> int:
        """Milliseconds since 1970. ValueError, with the reason, for what is no time or not of the log's kind."""
        number = _number(value)
        if number is None:
            if not isinstance(value, str):
                raise ValueError(f"expected a time, got {shown(value)}")
            found = read_date(value)
            self._agree("date", value)
            return found
        if not abs(number) < _LARGEST:  # NaN too; whole numbers may be too large for any arithmetic with floats
            raise ValueError(f"expected a time before the year 10000, got {shown(value)}")
        unit = self._unit
        if unit is None or not self._is_told:
            unit = _unit_of(number)
            self._agree(unit, value)
        if unit == "date":
            self._agree("a number", value)
        per_second = _PER_SECOND[unit]
        if isinstance(number, int):
            return _within(number * 1000 // per_second, value)
        return _within(round(number * 1000 / per_second), value)

    def _agree(self, kind: str, value: object) -> None:
        if self._unit is None:
            self._unit = kind
        elif self._unit != kind:
            told = "a date" if self._unit == "date" else f"a time in {self._unit}"
            raise ValueError(
                f"expected {told}, as the first one is, got {shown(value)} (--time-unit says it for certain)"
            )


def read_date(text: str) -> int:
    """An ISO date or date and time as milliseconds since 1970; UTC where it names no offset. ValueError."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            f"expected seconds since 1970 or a date like 2018-07-07 or 2018-07-07 22:09:11, got {shown(text)}"
        ) from None
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    since = found - EPOCH
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


def _number(value: object) -> int | float | None:
    """None for what is no number, also for a text that spells none."""
    if type(value) is int or type(value) is float:
        return value
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return None


def shown(value: object) -> str:
    """As a message shows it: its beginning."""
    return repr(value)[:80]


def _unit_of(number: int | float) -> str:
    size, end = abs(number), _SECONDS_END
    for unit in ("s", "ms", "us"):
        if size < end:
            return unit
        end *= 1000
    return "ns"


def _within(milliseconds: int, value: object) -> int:
    if abs(milliseconds) >= _YEAR_10000:
        raise ValueError(f"expected a time before the year 10000, got {shown(value)}")
    return milliseconds
