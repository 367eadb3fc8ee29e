"""`sid2pid.json`: a catalogue in OpenOneRec's form, which vLLM-GR and FlashRec make their own tables from.

A key is the three codes of a semantic id as one number, a * 8192**2 + b * 8192 + c, a value the items that have it,
`[{"pid": ...}, ...]`. Read in OpenOneRec's benchmark, vLLM-GR's convert_catalog.py and FlashRec's
convert_recif_catalog.py (November 2026). `tawin export` calls this.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..catalog.catalog import Catalog
from ..run.atomic import write_atomically

SID2PID_FILE = "sid2pid.json"
LEVELS, CODES = 3, 8192


def misfit(catalog: Catalog) -> str | None:
    """Why a catalogue cannot be written in this form; None where it can."""
    ids = catalog.semantic_ids
    if ids is None:
        return "the items have no semantic ids"
    lengths = {len(codes) for codes in ids}
    if lengths != {LEVELS}:
        found = " or ".join(map(str, sorted(lengths)))
        return f"its ids have {LEVELS} codes, those of this catalogue {found} (catalog.no-separate-shared-ids keeps 3)"
    largest = max(max(codes) for codes in ids)
    return None if largest < CODES else f"its codes are below {CODES}, this catalogue has {largest}"


def write_sid2pid(catalog: Catalog, folder: Path) -> None:
    """Write `sid2pid.json` of a catalogue without a `misfit`. Items of one id stand in the catalogue's order.

    An item's `pid` is the log's own id: a number where all of them are numbers, else text.
    """
    assert catalog.semantic_ids is not None
    names = catalog.source_ids or [str(item) for item in catalog.item_ids.tolist()]
    are_numbers = all(name.isascii() and name.isdigit() and str(int(name)) == name for name in names)
    found: dict[str, list[dict[str, int | str]]] = {}
    for (a, b, c), name in zip(catalog.semantic_ids, names, strict=True):
        key = str((a * CODES + b) * CODES + c)
        found.setdefault(key, []).append({"pid": int(name) if are_numbers else name})
    write_atomically(folder / SID2PID_FILE, json.dumps(found))
