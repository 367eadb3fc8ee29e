"""Which column of a table is what: by the name that was asked for, or by a usual one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.columns import DataError
from ..source import Columns

USUAL = {
    "user": ("user", "user_id", "userid", "uid", "customer", "customer_id", "visitor_id", "session_id", "reviewer_id"),
    "item": (
        "item",
        "item_id",
        "iid",
        "product",
        "product_id",
        "movie_id",
        "parent_asin",
        "asin",
        "business_id",
        "article_id",
        "stock_code",
        "sku",
    ),
    "time": (
        "timestamp",
        "time",
        "date",
        "datetime",
        "ts",
        "event_time",
        "created_at",
        "unix_review_time",
        "invoice_date",
        "t_dat",
    ),
    "rating": ("rating", "stars", "score", "overall"),
    "title": ("title", "name", "item_title", "item_name", "product_name", "movie_title"),
}
"""Column names that are known, most telling first; capitals and underscores make no difference."""
OF_ITEMS = (*USUAL["item"], "id")
_RECBOLE = re.compile(r":(token|token_seq|float|float_seq)$")  # the types that RecBole's headers have behind each name


@dataclass(frozen=True)
class Places:
    """Where a table has what; None: nowhere."""

    user: int
    item: int
    time: int | None
    rating: int | None
    event: int | None = None

    @classmethod
    def find(cls, header: Sequence[str], columns: Columns, wants_rating: bool, path: Path) -> Places:
        """The columns of a header. DataError where one is missing."""
        is_read = {"user": True, "item": True, "time": columns.has_times, "rating": wants_rating}
        user, item, time, rating = (
            find_column(header, wanted, USUAL[name], name, path) if read or wanted is not None else None
            for name, read in is_read.items()
            for wanted in (getattr(columns, name),)
        )
        names = ", ".join(name.strip() for name in header)
        for name, place in (("user", user), ("item", item), ("time", time if columns.has_times else 0)):
            if place is None:
                hint = "; where the rows stand oldest first, --no-times does without" if name == "time" else ""
                raise DataError(
                    f"{path}: expected a column for the {name}, got {names}; say --{name}-column NAME, or --no-header "
                    f"where these are no names{hint}"
                )
        if wants_rating and rating is None:
            raise DataError(f"{path}: expected a column for the rating, got {names}; say --rating-column NAME")
        assert user is not None and item is not None
        if user == item:
            both = header[user].strip()
            raise DataError(f"{path}: expected a column for the user and another for the item, got {both!r} for both")
        event = None if columns.event is None else find_column(header, columns.event, (), "event", path)
        return cls(user, item, time if columns.has_times else None, rating if wants_rating else None, event)

    @classmethod
    def numbered(cls, columns: Columns, wants_rating: bool) -> Places:
        """The columns of a table without a header: user, item, time unless numbers say otherwise."""
        time = _number(columns.time or "3", "time") if columns.has_times else None
        rating = _number(columns.rating or "4", "rating") if wants_rating else None
        event = None if columns.event is None else _number(columns.event, "event")
        return cls(_number(columns.user or "1", "user"), _number(columns.item or "2", "item"), time, rating, event)


def find_column(header: Sequence[str], wanted: str | None, usual: Sequence[str], what: str, path: Path) -> int | None:
    """The place of a column, by the name that was asked for, else by the first of the usual names that is there.

    Capitals, spaces and underscores of usual names make no difference, and RecBole's types (user_id:token) are no part
    of a name. DataError for one that was asked for in vain, or that two columns have.
    """
    names = [name.strip() for name in header]
    bare = [_RECBOLE.sub("", name) for name in names]
    if wanted is not None:
        for known in (names, bare):
            if wanted in known:
                return _only(known, wanted, what, path)
        raise DataError(f"{path}: expected a column {wanted!r} for the {what}, got {', '.join(names)}")
    plain = [_plain(name) for name in bare]
    found = next((name for name in map(_plain, usual) if name in plain), None)
    return None if found is None else _only(plain, found, what, path)


def places_of_items(header: Sequence[str], path: Path, columns: Columns) -> tuple[int, int]:
    """Where a table of items has the item and its title. DataError where one is missing."""
    item = find_column(header, columns.items_item, OF_ITEMS, "item", path)
    title = find_column(header, columns.title, USUAL["title"], "title", path)
    if item is None or title is None:
        raise DataError(
            f"{path}: expected columns for the item (item_id, id, ... or --items-item-column) and the title (title, "
            f"name, ... or --title-column), got {', '.join(header)}"
        )
    return item, title


def bare_name(name: str) -> str:
    """Without spaces around it and without RecBole's type."""
    return _RECBOLE.sub("", name.strip())


def _only(names: Sequence[str], name: str, what: str, path: Path) -> int:
    """The place of a name. DataError where two columns have it."""
    if names.count(name) > 1:
        raise DataError(
            f"{path}: expected one column {name!r} for the {what}, got {names.count(name)}; rename one or name another "
            f"(--{what}-column)"
        )
    return names.index(name)


def _plain(name: str) -> str:
    return name.replace("_", "").replace(" ", "").lower()


def _number(text: str, name: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--{name}-column: expected a number from 1 with --no-header, got {text!r}")
    return int(text) - 1
