"""Users' item lists out of a parquet file, as dense item indexes: into memory, or into memory-mapped files.

The file is read in batches of users. Held is what is asked for and one batch; for the mapped form only the batch and,
as each has to be seen to be there once, the users' ids. The mapped form is kept and used again:

    <name>.values.npy    int32 (int64 beyond 2**31 items) [interactions], dense indexes
    <name>.offsets.npy   int32 (int64 beyond 2**31 interactions) [users + 1], where each user's items begin and end
    <name>.user_ids.npy  int64 [users]
    <name>.weights.npy   float32 [interactions], where the file has a column `weights`
    <name>.json          what it was made of, written last: without it there is no mapped form

The name is a digest of the source (path, size, time of change, column types) and of the items' ids, so a changed
source gets a new form, one folder may serve many sources, and nothing is ever overwritten. Old forms are not removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..run.atomic import writing
from .columns import (
    DataError,
    open_parquet,
    read_integer_list_batches,
    read_integers,
    read_number_list_batches,
    read_table,
    reading_parquet,
    require_distinct,
)
from .ragged import Ragged

MIN_ITEMS = 3  # a test item, a valid item and at least one item of history
BATCH_USERS = 2**16
FORMAT = 1
_ARRAYS = ("values", "offsets", "user_ids")


@dataclass(frozen=True, eq=False)
class Interactions:
    """The users with at least three items."""

    user_ids: np.ndarray
    """int64 [users]"""
    sequences: Ragged
    """Dense item indexes, oldest first."""
    users_left_out: int


def read_interactions(path: Path, item_ids: np.ndarray) -> Interactions:
    """Reads `user_id` and `item_ids` of a parquet file into memory; row i of `item_ids` (int64) has dense index i.

    Raises DataError: see `data.load_dataset`.
    """
    batches = list(_batches(path, item_ids))
    values = np.concatenate([batch.sequences.values for batch in batches])
    lengths = np.concatenate([batch.sequences.lengths for batch in batches])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(_integer_below(len(values) + 1))
    return Interactions(
        user_ids=np.concatenate([batch.user_ids for batch in batches]),
        sequences=Ragged(values, offsets[:-1], offsets[1:]),
        users_left_out=sum(batch.users_left_out for batch in batches),
    )


def map_interactions(path: Path, item_ids: np.ndarray, folder: Path) -> Interactions:
    """The same with all arrays memory-mapped, read-only, from `folder`; they are written there unless they are there.

    Raises DataError: see `data.load_dataset`; also for files in the folder that are not what their header says.
    """
    header, fingerprint = form_of(path, item_ids, folder)
    if not header.exists():
        _convert(path, item_ids, header, fingerprint)
    return _open(header, fingerprint)


def with_weights(path: Path, sequences: Ragged, item_ids: np.ndarray, memory_map: Path | None) -> Ragged:
    """The sequences, which are what `read_interactions` or `map_interactions` made of the file, with their weights,
    float32; as they are where the file has none.

    Raises DataError: see `data.load_dataset`.
    """
    with open_parquet(path, ("user_id", "item_ids")) as file:
        if "weights" not in file.schema_arrow.names:
            return sequences
    batches = _weight_batches(path, sequences.lengths)
    if memory_map is None:
        return replace(sequences, weights=np.concatenate(list(batches)))
    header, _ = form_of(path, item_ids, memory_map)
    return replace(sequences, weights=map_beside(header, "weights", np.float32, batches, len(sequences.values)))


def form_of(path: Path, item_ids: np.ndarray, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The header file of the mapped form, whether it is there or not, and what it is made of."""
    fingerprint = _fingerprint(path, item_ids)
    return folder / f"{hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest()[:16]}.json", fingerprint


def _batches(path: Path, item_ids: np.ndarray) -> Iterator[Interactions]:
    """The file's interactions, BATCH_USERS users of the file at a time; the sequences lie one after another."""
    user_ids = read_integers(read_table(path, required=("user_id",)), "user_id", path)
    require_distinct(user_ids, "user_id", path)
    read = kept = interactions = 0
    for indexes, lengths in _dense_batches(path, item_ids):
        is_kept = lengths >= MIN_ITEMS
        offsets = np.concatenate([[0], np.cumsum(lengths[is_kept])])
        sequences = Ragged(indexes[np.repeat(is_kept, lengths)], offsets[:-1], offsets[1:])
        yield Interactions(user_ids[read : read + len(lengths)][is_kept], sequences, int((~is_kept).sum()))
        read += len(lengths)
        kept += len(sequences)
        interactions += len(indexes)
    if interactions == 0:
        raise DataError(f"{path}: column 'item_ids': expected interactions, got none ({len(user_ids)} users)")
    if kept == 0:
        raise DataError(
            f"{path}: column 'item_ids': expected users with at least {MIN_ITEMS} items (train, valid, test), "
            f"but each of the {len(user_ids)} users has fewer"
        )


def _dense_batches(path: Path, item_ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Dense indexes one after another, and how many belong to each user; unknown ids are counted and refused last."""
    order = np.argsort(item_ids)
    ordered = item_ids[order]
    order = order.astype(_integer_below(len(item_ids)))
    unknown = np.zeros(0, dtype=np.int64)
    for values, lengths in read_integer_list_batches(path, "item_ids", BATCH_USERS):
        places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
        unknown = np.union1d(unknown, values[ordered[places] != values])
        yield order[places], lengths
    if len(unknown):
        raise DataError(
            f"{path}: column 'item_ids': expected items of items.parquet, but {len(unknown)} item ids are missing "
            f"there; the first: {', '.join(map(str, unknown[:5]))}"
        )


def _weight_batches(path: Path, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """float32 weights of the users with enough items, one after another; lengths: how many items each of them has."""
    done = 0
    for values, counts in read_number_list_batches(path, "weights", BATCH_USERS):
        is_kept = counts >= MIN_ITEMS
        kept, values = counts[is_kept], values[np.repeat(is_kept, counts)]
        if not np.array_equal(kept, lengths[done : done + len(kept)]):
            raise DataError(f"{path}: column 'weights': expected as many weights as items of each user, got others")
        done += len(kept)
        wrong = values[~((values > 0) & (values < np.inf))]
        if len(wrong):
            raise DataError(f"{path}: column 'weights': expected numbers above 0, got {wrong[0]:g}")
        yield values
    if done != len(lengths):
        raise DataError(f"{path}: column 'weights': expected weights of {len(lengths)} users, got {done}")


def _integer_below(end: int) -> np.dtype[Any]:
    """The smaller of int32 and int64 that holds 0..end - 1."""
    return np.dtype(np.int32 if end <= 2**31 else np.int64)


def _fingerprint(path: Path, item_ids: np.ndarray) -> dict[str, Any]:
    with open_parquet(path, ("user_id", "item_ids")) as file:
        types = {name: str(file.schema_arrow.field(name).type) for name in ("user_id", "item_ids")}
    found = path.stat()
    return {
        "format": FORMAT,
        "source": str(path.resolve()),
        "bytes": found.st_size,
        "modified_ns": found.st_mtime_ns,
        "types": types,
        "item_ids": hashlib.sha256(item_ids.tobytes()).hexdigest(),
    }


def _convert(path: Path, item_ids: np.ndarray, header: Path, fingerprint: dict[str, Any]) -> None:
    """Each file appears whole or not at all, the header last; whoever else converts meanwhile writes the same."""
    try:
        header.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise DataError(f"{header.parent}: expected a folder for the memory-mapped data, found a file") from None
    with writing(header), tempfile.TemporaryDirectory(dir=header.parent, prefix=".part-") as scratch:
        part = Path(scratch) / header.name
        counts = {"users": 0, "interactions": 0, "users_left_out": 0}
        with (
            growing_array(array_path(part, "values"), _integer_below(len(item_ids))) as add_values,
            growing_array(array_path(part, "offsets"), _integer_below(_most_values(path) + 1)) as add_offsets,
            growing_array(array_path(part, "user_ids"), np.dtype(np.int64)) as add_user_ids,
        ):
            add_offsets(np.zeros(1))
            for batch in _batches(path, item_ids):
                add_values(batch.sequences.values)
                add_offsets(counts["interactions"] + batch.sequences.stops)
                add_user_ids(batch.user_ids)
                counts["users"] += len(batch.user_ids)
                counts["interactions"] += len(batch.sequences.values)
                counts["users_left_out"] += batch.users_left_out
        with part.open("w") as file:
            file.write(json.dumps({"made_of": fingerprint, **counts}, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for name in _ARRAYS:
            os.replace(array_path(part, name), array_path(header, name))
        os.replace(part, header)


def _most_values(path: Path) -> int:
    """At least as many as the lists of item_ids have values, from the file's footer."""
    with open_parquet(path, ("item_ids",)) as file, reading_parquet(path):
        groups = (file.metadata.row_group(group) for group in range(file.metadata.num_row_groups))
        columns = (group.column(column) for group in groups for column in range(group.num_columns))
        return sum(column.num_values for column in columns if column.path_in_schema.startswith("item_ids."))


def _open(header: Path, fingerprint: dict[str, Any]) -> Interactions:
    expected = "the files that load_dataset wrote; remove all of this name to have them made anew"
    try:
        found = json.loads(header.read_text())
        users, interactions, left_out = found["users"], found["interactions"], found["users_left_out"]
        if found["made_of"] != fingerprint:
            raise ValueError(f"it is made of {found['made_of']}, not of {fingerprint}")
        # A plain view of the mapped file: slices of the class memmap are several times as slow.
        arrays = {name: np.asarray(np.load(array_path(header, name), mmap_mode="r")) for name in _ARRAYS}
        shapes = {name: array.shape for name, array in arrays.items()}
        if shapes != {"values": (interactions,), "offsets": (users + 1,), "user_ids": (users,)}:
            raise ValueError(f"{users} users and {interactions} interactions do not go with arrays of {shapes}")
        sequences = Ragged(arrays["values"], arrays["offsets"][:-1], arrays["offsets"][1:])
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(f"{header}: expected {expected}: {error}") from error
    return Interactions(arrays["user_ids"], sequences, left_out)


def map_beside(
    header: Path, name: str, dtype: type[np.generic], batches: Iterator[np.ndarray], interactions: int
) -> np.ndarray:
    """[interactions], memory-mapped, read-only: what `batches` give one after another, written unless it is there.

    Raises DataError for a file that is not what was written there.
    """
    whole = array_path(header, name)
    if not whole.exists():
        with writing(whole), tempfile.TemporaryDirectory(dir=header.parent, prefix=".part-") as scratch:
            part = Path(scratch) / whole.name
            with growing_array(part, np.dtype(dtype)) as add:
                for values in batches:
                    add(values)
            os.replace(part, whole)
    try:
        # A plain view of the mapped file: slices of the class memmap are several times as slow.
        found = np.asarray(np.load(whole, mmap_mode="r"))
        if found.dtype != dtype or found.shape != (interactions,):
            raise ValueError(f"{found.dtype} {found.shape} does not go with {interactions} interactions")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{whole}: expected the file that load_dataset wrote; remove it to have it made anew: {error}"
        ) from error
    return found


def array_path(header: Path, name: str) -> Path:
    return header.with_suffix(f".{name}.npy")


@contextmanager
def growing_array(path: Path, dtype: np.dtype[Any]) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that appends to a new one-dimensional .npy file; its length is filled in at the end."""
    # numpy leaves room in the header for the first dimension to grow, so that the last header is as long as this one.
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    length = 0
    with path.open("xb") as file:

        def add(values: np.ndarray) -> None:
            nonlocal length
            length += len(values)
            file.write(np.ascontiguousarray(values, dtype=dtype).data)

        np.lib.format.write_array_header_1_0(file, {**header, "shape": (0,)})
        yield add
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (length,)})
        file.flush()
        os.fsync(file.fileno())
