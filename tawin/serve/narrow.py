"""Which items a request may get: those that fit a condition, without those of a list. Called by `recommend`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from ..catalog.catalog import Catalog
from ..data.columns import DataError
from ..data.item_columns import OWN_COLUMNS, arrays_of, matching
from ..data.source_ids import places_of


def allowed_items(catalog: Catalog, where: str | None, leave_out: Path | None) -> np.ndarray | None:
    """int64, ascending: rows of the items that may be recommended; None: all.

    where: a condition (`data.item_columns.matching`) on the items' columns, `item_id` (the log's own, text unless all
        are numbers) and `title`.
    leave_out: a text file with an id of the log in each line; blank lines, and ids of other items, say nothing.

    Raises:
        ValueError: what is no condition, or one that no item fits; a list that leaves none.
        DataError: a list that cannot be read, or without any item of the catalogue.
    """
    if where is None and leave_out is None:
        return None
    rows = np.arange(catalog.num_items) if where is None else matching(_table(catalog), where)
    if leave_out is not None:
        rows = np.setdiff1d(rows, _listed(catalog, leave_out))
        if len(rows) == 0:
            raise ValueError(f"--leave-out {leave_out}: expected items that are left to recommend, got none")
    return rows


def _table(catalog: Catalog) -> pa.Table:
    ids = pa.array(catalog.item_ids) if catalog.has_numbers else pa.array(catalog.names, pa.string())
    titles = pa.array(catalog.titles or [None] * catalog.num_items, pa.string())
    others = {name: values for name, values in arrays_of(catalog.columns).items() if name not in OWN_COLUMNS}
    return pa.table({"item_id": ids, "title": titles, **others})


def _listed(catalog: Catalog, path: Path) -> np.ndarray:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--leave-out {path}: expected a text file of item ids, cannot read it: {error}") from None
    names = [line.strip() for line in lines if line.strip()]
    places = places_of(names, catalog.names)
    if names and (places < 0).all():
        known = ", ".join(catalog.names[:3])
        raise DataError(f"--leave-out {path}: expected ids of the log, like {known}, but none of {len(names):,} is one")
    return places[places >= 0]
