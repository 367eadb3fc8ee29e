"""The log's own ids of items: by them a run, an export and a data folder know that they speak of the same items.

`tawin prepare` numbers ids that are not all whole numbers by first sight, so `item_id` of one folder says nothing about
another. Whatever compares or translates items of two places does it here; an id is text, leading zeros included.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .columns import DataError

SHOWN = 5  # ids that a message names


def places_of(wanted: Sequence[str] | pa.Array, known: Sequence[str] | pa.Array) -> np.ndarray:
    """int64: where each wanted id stands among the known ones, which are distinct; -1 where it does not."""
    places = pc.index_in(_strings(wanted), value_set=_strings(known))
    return places.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def order_of(found: Sequence[str], wanted: Sequence[str], where: str) -> np.ndarray | None:
    """int64 [items]: the place in `found` of each wanted id; None where the two are equal as they stand.

    Raises:
        DataError: they are not the same ids; it says how many and which are missing or new. `where` begins the message.
    """
    if list(found) == list(wanted):
        return None
    places = places_of(wanted, found)
    missing = [wanted[int(place)] for place in np.flatnonzero(places < 0)]
    new = [found[int(place)] for place in np.flatnonzero(places_of(found, wanted) < 0)]
    if missing or new:
        raise DataError(
            f"{where}: expected the {len(wanted):,} items that the run was trained on, got others: "
            f"{len(missing):,} of them are missing{_some(missing)}, {len(new):,} of its {len(found):,} are "
            f"new{_some(new)}; prepare the log that the run was trained on, or train anew"
        )
    return places


def _some(ids: list[str]) -> str:
    if not ids:
        return ""
    return f" ({', '.join(ids[:SHOWN])}{', ...' if len(ids) > SHOWN else ''})"


def _strings(ids: Sequence[str] | pa.Array) -> pa.Array:
    return ids if isinstance(ids, pa.Array) else pa.array(ids, pa.string())
