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
    if duplicates == "keep" or len(users) == 0:
        return kept
    if duplicates == "consecutive" or (duplicates == "drop" and times is None):
        kept[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
        return kept
    # Stable, so that equal rows stand in their own order and the first of them is the earliest.
    keys = (items, times, users) if duplicates == "drop" else (items, users)
    order = np.lexsort(keys)  # type: ignore[arg-type]
    differs = np.zeros(len(users) - 1, dtype=bool)  # a row from the one before it
    for key in keys:
        ordered = key[order]  # type: ignore[index]
        differs |= ordered[1:] != ordered[:-1]
    kept[order] = np.append(differs, True) if duplicates == "last" else np.append(True, differs)
    return kept


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
