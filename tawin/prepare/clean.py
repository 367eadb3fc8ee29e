"""What is kept of a log and in which order: repeats, k-core, oldest first. Arrays in, arrays out."""

from __future__ import annotations

from typing import Literal

import numpy as np

Duplicates = Literal["keep", "drop", "first", "last", "consecutive"]


def order_by_time(users: np.ndarray, times: np.ndarray | None) -> np.ndarray:
    """int64 [rows]: rows user by user, oldest first; rows of one time, or of no time at all, stay in their order."""
    if times is None:
        return np.argsort(users, kind="stable")
    return np.lexsort((times, users))


def not_repeated(users: np.ndarray, items: np.ndarray, times: np.ndarray | None, duplicates: Duplicates) -> np.ndarray:
    """bool [rows], for rows in order: whether a row is kept.

    "drop": of rows with the same user, item and time one is kept (without times: of rows that repeat the one before
    them); "first", "last": of rows with the same user and item the first or the last; "consecutive": a row goes that
    repeats the item before it, whenever that was; "keep": all.
    """
    kept = np.ones(len(users), dtype=bool)
    if duplicates != "keep" and len(users):
        order, begins = _repeats(users, items, times, duplicates)
        kept[order] = np.append(begins[1:], True) if duplicates == "last" else begins
    return kept


def largest_of_repeats(
    weights: np.ndarray, users: np.ndarray, items: np.ndarray, times: np.ndarray | None, duplicates: Duplicates
) -> np.ndarray:
    """float32 [rows], for rows in order: the largest weight of the rows of which `not_repeated` keeps one."""
    if duplicates == "keep" or len(users) == 0:
        return weights
    order, begins = _repeats(users, items, times, duplicates)
    largest = np.empty_like(weights)
    largest[order] = np.maximum.reduceat(weights[order], np.flatnonzero(begins))[np.cumsum(begins) - 1]
    return largest


def _repeats(
    users: np.ndarray, items: np.ndarray, times: np.ndarray | None, duplicates: Duplicates
) -> tuple[np.ndarray, np.ndarray]:
    """An order of the rows in which repeats follow each other, int64 [rows], and where others begin in it, bool."""
    if duplicates == "consecutive" or (duplicates == "drop" and times is None):
        keys, order = (items, users), np.arange(len(users))
    else:
        # Stable, so that equal rows stand in their own order and the first of them is the earliest.
        keys = (items, times, users) if duplicates == "drop" else (items, users)  # type: ignore[assignment]
        order = np.lexsort(keys)
    begins = np.zeros(len(users), dtype=bool)
    begins[0] = True
    for key in keys:
        ordered = key[order]
        begins[1:] |= ordered[1:] != ordered[:-1]
    return order, begins


def k_core(users: np.ndarray, items: np.ndarray, minimum: int) -> np.ndarray:
    """int64 [kept], ascending: the rows of the largest set in which each user and each item has `minimum` rows."""
    rows = np.arange(len(users))
    while minimum > 1 and len(rows):
        kept = np.ones(len(rows), dtype=bool)
        for codes in (users[rows], items[rows]):
            kept &= np.bincount(codes)[codes] >= minimum
        if kept.all():
            break
        rows = rows[kept]
    return rows


def renumber(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The codes that occur, ascending, and each code as its place among them, int32."""
    occurring = np.flatnonzero(np.bincount(codes)) if len(codes) else np.zeros(0, dtype=np.int64)
    places = np.zeros(int(occurring[-1]) + 1 if len(occurring) else 0, dtype=np.int32)
    places[occurring] = np.arange(len(occurring))
    return occurring, places[codes]
