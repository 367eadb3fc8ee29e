"""The interactions of a source, gathered row by row as flat arrays: 16 bytes each, and every id as text once."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass

import numpy as np

from ..columns import DataError
from .times import shown

MAX_ID_LENGTH = 1000


@dataclass(frozen=True)
class Selection:
    """Which interactions of a source are wanted at all."""

    min_rating: float | None = None
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
        self.rows = 0
        """Interactions that the source has, wanted or not."""
        self.below_min_rating = self.outside_dates = 0

    @property
    def wants_rating(self) -> bool:
        return self._selection.min_rating is not None

    def add(self, user: str, item: str, time: int | None, rating: str | float | None = None) -> None:
        """One interaction. ValueError, with the reason, for one that is none; then nothing is kept of it.

        time: milliseconds since 1970, or None in every row where the source's own order is the order in time.
        rating: only looked at where a least rating is asked for.
        """
        require_id("user", user)
        require_id("item", item)
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
        self.rows += 1

    def __len__(self) -> int:
        return len(self._user_codes)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Codes of users and of items, int32, and times, int64 milliseconds; views of what is gathered."""
        if len(self._times) not in (0, len(self)):
            raise DataError(f"expected a time in every row or in none, got {len(self._times):,} in {len(self):,} rows")
        times = np.frombuffer(self._times, dtype=np.int64) if len(self._times) else None
        return (
            np.frombuffer(self._user_codes, dtype=np.int32),
            np.frombuffer(self._item_codes, dtype=np.int32),
            times,
        )


def require_id(name: str, value: str) -> None:
    """ValueError for what cannot be an id; half of a surrogate pair, which JSON can spell, is in no file of text."""
    if not value:
        raise ValueError(f"expected the {name}, got none")
    if len(value) > MAX_ID_LENGTH:
        raise ValueError(f"expected the {name} in at most {MAX_ID_LENGTH} characters, got {len(value)}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"expected the {name} in whole characters, got {value[:80]!r}")


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
