"""The data folder that preparing makes: written beside its place, then put there whole.

    interactions.parquet   user_id, item_ids (oldest first), where the source has times `times`, milliseconds, and
                           where events have weights `weights`
    items.parquet          item_id, title, semantic_id, source_id: the source's own id, as text; others
    users.parquet          user_id, source_id
    prepare.json           how it was made

Ids that are all whole numbers stay what they are; others are numbered in the order in which they are first seen.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.columns import DataError, integer_type, optional_array
from ..data.dataset import INTERACTIONS_FILE, ITEMS_FILE
from ..data.item_columns import arrays_of
from ..run.atomic import sync_file, sync_folder, writing

USERS_FILE = "users.parquet"
REPORT_FILE = "prepare.json"
BATCH_USERS = 2**16
_LONGEST_INTEGER = 18  # digits that every int64 has room for


@dataclass(frozen=True, eq=False)
class Prepared:
    """What is to be written. Sequences address items by their row."""

    user_sources: list[str]
    item_sources: list[str]
    items: np.ndarray
    """int32 [interactions], rows of item_sources, user by user, oldest first."""
    offsets: np.ndarray
    """int64 [users + 1]"""
    times: np.ndarray | None
    """int64 [interactions], milliseconds since 1970"""
    weights: np.ndarray | None
    """float32 [interactions]"""
    titles: list[str | None] | None
    semantic_ids: list[tuple[int, ...]] | None
    columns: pa.Table | None = None
    """What else the source says of its items, a row per item."""


def require_new(folder: Path) -> None:
    """DataError where the folder holds anything, or is a file."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise DataError(f"{folder}: expected a new or an empty folder, got one with files in it; choose another name")


def write_folder(prepared: Prepared, report: dict[str, Any], folder: Path) -> None:
    """Writes all files or none. DataError where somebody else has filled the folder meanwhile."""
    with _appearing(folder) as part:
        item_ids = public_ids(prepared.item_sources)
        _write_interactions(prepared, item_ids, part / INTERACTIONS_FILE)
        catalogue = pa.table(
            {
                "item_id": pa.array(item_ids, integer_type(item_ids)),
                "title": optional_array(prepared.titles, len(item_ids), pa.string()),
                "semantic_id": optional_array(prepared.semantic_ids, len(item_ids), pa.list_(pa.int32())),
                "source_id": pa.array(prepared.item_sources, pa.string()),
                **arrays_of(prepared.columns),
            }
        )
        pq.write_table(catalogue, part / ITEMS_FILE, write_page_checksum=True)
        user_ids = public_ids(prepared.user_sources)
        users = {
            "user_id": pa.array(user_ids, integer_type(user_ids)),
            "source_id": pa.array(prepared.user_sources, pa.string()),
        }
        pq.write_table(pa.table(users), part / USERS_FILE, write_page_checksum=True)
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        # A file's name may hold bytes that are no text: they become JSON's own \udcff.
        (part / REPORT_FILE).write_text(text, encoding="utf-8", errors="backslashreplace")


def numbering_notes(prepared: Prepared) -> list[str]:
    """What is to be said where ids were numbered."""
    kinds = {"item": prepared.item_sources, "user": prepared.user_sources}
    return [
        f"{kind} ids are not all whole numbers without leading zeros, so the folder numbers them in the order in which "
        f"they are first seen; {kind}s.parquet has the log's own as source_id"
        + (", and these are what every command takes and shows" if kind == "item" else "")
        for kind, sources in kinds.items()
        if not _are_numbers(sources)
    ]


def public_ids(sources: list[str]) -> np.ndarray:
    """int64: the ids themselves where all of them are whole numbers as one writes them, else 0, 1, ..."""
    if _are_numbers(sources):
        return np.array([int(text) for text in sources], dtype=np.int64)
    return np.arange(len(sources), dtype=np.int64)


def _are_numbers(sources: list[str]) -> bool:
    return all(len(text) <= _LONGEST_INTEGER and text.isascii() and _is_integer(text) for text in sources)


def _is_integer(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isdigit() and (digits[0] != "0" or text == "0")


def _write_interactions(prepared: Prepared, item_ids: np.ndarray, path: Path) -> None:
    user_ids = public_ids(prepared.user_sources)
    fields = [("user_id", integer_type(user_ids)), ("item_ids", pa.list_(integer_type(item_ids)))]
    others: dict[str, np.ndarray] = {}
    for name, values, kind in (("times", prepared.times, pa.int64()), ("weights", prepared.weights, pa.float32())):
        if values is not None:
            others[name] = values
            fields.append((name, pa.list_(kind)))
    schema = pa.schema(fields)
    with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
        for first in range(0, len(user_ids), BATCH_USERS):
            bounds = prepared.offsets[first : first + BATCH_USERS + 1]
            flat = slice(int(bounds[0]), int(bounds[-1]))
            offsets = pa.array(bounds - bounds[0], pa.int32())
            columns = {"user_id": user_ids[first : first + BATCH_USERS], "item_ids": item_ids[prepared.items[flat]]}
            columns |= {name: values[flat] for name, values in others.items()}
            arrays = [
                pa.array(columns[name], kind)
                if name == "user_id"
                else pa.ListArray.from_arrays(offsets, pa.array(columns[name], kind.value_type))
                for name, kind in fields
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when the block ends, and is gone if it fails."""
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        with writing(folder):
            yield part
            part.chmod(0o777 & ~_umask())
            for path in part.iterdir():
                sync_file(path)
            sync_folder(part)
            require_new(folder)
            os.rename(part, folder)  # an empty folder gives way to it, one with files does not
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found
