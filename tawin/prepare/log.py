"""The interactions of a source, gathered row by row as flat arrays: 16 bytes each, and every id as text once."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..data.columns import DataError
from .ids import plain_id
from .times import TimeReader, Value, shown


@dataclass(frozen=True)
class Selection:
    """Which interactions of a source are wanted at all."""

    min_rating: float | None = None
    events: frozenset[str] | None = None
    """The kinds of event that are wanted, as the source writes them; None: all are."""
    weights: Mapping[str, float] | None = None
    """What each of them weighs; None: interactions have no weights."""
    after: int | None = None
    """Milliseconds since 1970, the first that is wanted."""
    before: int | None = None
    """Milliseconds since 1970, the first that is no longer wanted."""


class Log:
    """Users and items become numbers, 0, 1, ... in the order in which they are first seen."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self.users: dict[str, int] = {}
        self.items: dict[str, int] = {}
        self._user_codes, self._item_codes, self._times = array("i"), array("i"), array("q")
        self._weights = array("f")
        self.rows = 0
        """Interactions that the source has, wanted or not."""
        self.time_reader: TimeReader | None = None
        """By which the source's times are read; None: it has none."""
        self.below_min_rating = self.outside_dates = 0
        self.other_events: Counter[str] = Counter()
        """Interactions of each kind that is not wanted."""

    @property
    def wants_rating(self) -> bool:
        return self._selection.min_rating is not None

    @property
    def wants_event(self) -> bool:
        return self._selection.events is not None

    def is_other_event(self, event: str | None) -> bool:
        """Whether a row is of a kind that is not wanted, which is counted: nothing else of it is looked at then."""
        name = str(event or "").strip()
        if self._selection.events is None or name in self._selection.events:
            return False
        self.rows += 1
        self.other_events[name] += 1
        return True

    def add_row(
        self, user: str, item: str, time: Value, rating: str | float | None = None, event: str | None = None
    ) -> None:
        """`add` of a time as the source writes it. A row without an id is that, whatever its time is."""
        if user not in self.users:
            user = plain_id("user", user)
        if item not in self.items:
            item = plain_id("item", item)
        self.add(user, item, None if self.time_reader is None else self.time_reader.read(time), rating, event)

    def add(
        self,
        user: str,
        item: str,
        time: int | None,
        rating: str | float | None = None,
        event: str | None = None,
    ) -> None:
        """One interaction. ValueError, with the reason, for one that is none; then nothing is kept of it.

        user, item: as the source writes them, see `plain_id`.
        time: milliseconds since 1970, or None in every row where the source's own order is the order in time.
        rating: only looked at where a least rating is asked for.
        event: only looked at where events have weights; a wanted one, see `is_other_event`.
        """
        if user not in self.users:
            user = plain_id("user", user)
        if item not in self.items:
            item = plain_id("item", item)
        chosen = self._selection
        if chosen.min_rating is not None and read_rating(rating) < chosen.min_rating:
            self.below_min_rating += 1
        elif (chosen.after is not None and _known(time) < chosen.after) or (
            chosen.before is not None and _known(time) >= chosen.before
        ):
            self.outside_dates += 1
        else:
            self._user_codes.append(self.users.setdefault(user, len(self.users)))
            self._item_codes.append(self.items.setdefault(item, len(self.items)))
            if time is not None:
                self._times.append(time)
            if chosen.weights is not None:
                self._weights.append(chosen.weights[str(event).strip()])
        self.rows += 1

    def __len__(self) -> int:
        return len(self._user_codes)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Codes of users and of items, int32, times, int64 milliseconds, and weights, float32; views of what is
        gathered."""
        if len(self._times) not in (0, len(self)):
            raise DataError(f"expected a time in every row or in none, got {len(self._times):,} in {len(self):,} rows")
        return (
            np.frombuffer(self._user_codes, dtype=np.int32),
            np.frombuffer(self._item_codes, dtype=np.int32),
            np.frombuffer(self._times, dtype=np.int64) if len(self._times) else None,
            np.frombuffer(self._weights, dtype=np.float32) if len(self._weights) else None,
        )


def read_rating(value: str | float | None) -> float:
    """ValueError for what is no number."""
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = math.nan
    if math.isnan(found):
        raise ValueError(f"expected a rating (--min-rating needs one), got {shown(value)}")
    return found


def _known(time: int | None) -> int:
    if time is None:
        raise DataError("--after, --before: expected a source with times, got one without")
    return time
