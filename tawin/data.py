"""Interaction data: a folder of parquet files in, users' item sequences and leave-one-out examples out.

A folder holds `interactions.parquet` (`user_id`, `item_ids` oldest first) and `items.parquet` (`item_id`, and where
known `title` and `semantic_id`, one code a level). Everything that comes out addresses an item by its row in
items.parquet, the dense index 0..items-1; the original ids stay at the border. This module knows nothing of tokens or
models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

INTERACTIONS_FILE = "interactions.parquet"
ITEMS_FILE = "items.parquet"
MIN_ITEMS = 3  # a test item, a valid item and at least one item of history


class DataError(ValueError):
    """A data folder or file that cannot be used; the message names file and column, what was expected, what came."""


@dataclass(frozen=True, eq=False)
class Items:
    """The catalogue as the data describes it; row i is the item of dense index i."""

    item_ids: np.ndarray
    """int64 [items], distinct, in any order."""
    titles: list[str | None] | None = None
    """None where the data has no titles at all; single items may lack one."""
    semantic_ids: list[tuple[int, ...]] | None = None
    """One code a level, all of one length; items may share one. None where the data has none."""

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Users' complete sequences over a catalogue."""

    name: str
    user_ids: np.ndarray
    """int64 [users]"""
    sequences: list[np.ndarray]
    """A user's items as dense indexes, int64, oldest first, at least three."""
    items: Items
    users_left_out: int = 0
    """Users of the file with fewer than three items, which have no train, valid and test item; they are not in here."""
    best_recall: dict[int, float] | None = None
    """Recall@K of the true model on the test items; known for synthetic data only."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Next-item examples: a history and the item that followed."""

    user_ids: np.ndarray
    """int64 [N]"""
    histories: list[np.ndarray]
    """int64 dense indexes, oldest first, cut to the most recent ones."""
    targets: np.ndarray
    """int64 [N]"""

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indexes: Sequence[int] | np.ndarray) -> Examples:
        """The examples at `indexes`, in that order."""
        rows = np.asarray(indexes, dtype=np.int64)
        return Examples(self.user_ids[rows], [self.histories[row] for row in rows], self.targets[rows])

    def sample(self, n: int, seed: int) -> Examples:
        """n examples without replacement, in their original order; all of them where n is not smaller."""
        if n < 0:
            raise ValueError(f"n: expected 0 or more, got {n}")
        if n >= len(self):
            return self
        return self.take(np.sort(np.random.default_rng(seed).choice(len(self), size=n, replace=False)))


@dataclass(frozen=True, eq=False)
class Split:
    """Leave-one-out a user: last item test, the one before valid, the rest for training (SFT and RL)."""

    sft: list[np.ndarray]
    """Training sequences, one a user, each of at least two items."""
    rl: Examples
    valid: Examples
    test: Examples


def load_dataset(folder: str | Path) -> Dataset:
    """Reads a data folder and checks it.

    Columns: interactions.parquet `user_id` integer, `item_ids` list of integers; items.parquet `item_id` integer, and
    optionally `title` string and `semantic_id` list of integers (a column that is absent or all null is no column).
    Users with fewer than three items are left out and counted.

    Raises:
        DataError: a file or column that is missing or of another type, nulls where a value is needed, repeated ids,
            items of interactions that items.parquet lacks, semantic ids that some items lack or that are of uneven
            length or negative, no interactions, nobody with three items.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with {INTERACTIONS_FILE} and {ITEMS_FILE}, found no such folder")
    items = _load_items(folder / ITEMS_FILE)
    path = folder / INTERACTIONS_FILE
    table = read_table(path, required=("user_id", "item_ids"))
    user_ids = read_integers(table, "user_id", path)
    require_distinct(user_ids, "user_id", path)
    values, lengths = read_integer_lists(table, "item_ids", path)
    if len(values) == 0:
        raise DataError(f"{path}: column 'item_ids': expected interactions, got none ({len(user_ids)} users)")

    sequences = np.split(_dense_indexes(values, items, path), np.cumsum(lengths)[:-1])
    kept = np.flatnonzero(lengths >= MIN_ITEMS)
    if len(kept) == 0:
        raise DataError(
            f"{path}: column 'item_ids': expected users with at least {MIN_ITEMS} items (train, valid, test), "
            f"but each of the {len(user_ids)} users has fewer"
        )
    return Dataset(
        name=folder.resolve().name,
        user_ids=user_ids[kept],
        sequences=[sequences[user] for user in kept],
        items=items,
        users_left_out=len(user_ids) - len(kept),
    )


def save_dataset(dataset: Dataset, folder: str | Path) -> None:
    """Writes a data folder that `load_dataset` reads; best_recall and the count of users left out are not kept.

    Raises:
        DataError: the folder already holds one of the two files.
    """
    folder = Path(folder)
    for name in (INTERACTIONS_FILE, ITEMS_FILE):
        if (folder / name).exists():
            raise DataError(f"{folder / name}: exists already; choose another folder or remove it first")
    folder.mkdir(parents=True, exist_ok=True)
    items = dataset.items
    original = [items.item_ids[sequence] for sequence in dataset.sequences]
    item_type = _integer_type(items.item_ids)
    interactions = pa.table(
        {
            "user_id": pa.array(dataset.user_ids, type=_integer_type(dataset.user_ids)),
            "item_ids": pa.array(original, type=pa.list_(item_type)),
        }
    )
    catalogue = pa.table(
        {
            "item_id": pa.array(items.item_ids, type=item_type),
            "title": optional_array(items.titles, len(items), pa.string()),
            "semantic_id": optional_array(items.semantic_ids, len(items), pa.list_(pa.int64())),
        }
    )
    pq.write_table(interactions, folder / INTERACTIONS_FILE)
    pq.write_table(catalogue, folder / ITEMS_FILE)


def training_sequences(dataset: Dataset) -> list[np.ndarray]:
    """Every user's items without the valid and the test item: all that a catalogue may be built from."""
    return [sequence[:-2] for sequence in dataset.sequences]


def split_leave_one_out(dataset: Dataset, *, max_history: int = 10, rl_share: float = 1.0, seed: int = 0) -> Split:
    """Splits each user's sequence: last item test, the one before valid, the rest training.

    For a share of the users with at least two training items the last training interaction is kept from SFT and becomes
    an RL example, whose history is the training items before it. Histories are the last `max_history` items before the
    target: of a valid item all training items count, of a test item the valid item too.
    """
    if max_history < 1:
        raise ValueError(f"max_history: expected at least 1, got {max_history}")
    if not 0.0 <= rl_share <= 1.0:
        raise ValueError(f"rl_share: expected a share in [0, 1], got {rl_share}")
    train = training_sequences(dataset)
    eligible = np.flatnonzero([len(sequence) >= 2 for sequence in train])
    chosen = np.random.default_rng(seed).permutation(eligible)[: round(rl_share * len(eligible))]
    held_out = np.zeros(len(train), dtype=np.int64)
    held_out[chosen] = 1

    everybody = np.arange(len(train))
    sft = [sequence[: len(sequence) - held] for sequence, held in zip(train, held_out, strict=True)]
    return Split(
        sft=[sequence for sequence in sft if len(sequence) >= 2],
        rl=_examples(dataset, np.sort(chosen), target=-3, max_history=max_history),
        valid=_examples(dataset, everybody, target=-2, max_history=max_history),
        test=_examples(dataset, everybody, target=-1, max_history=max_history),
    )


def training_windows(sequences: Sequence[np.ndarray], max_history: int) -> tuple[list[np.ndarray], list[int]]:
    """Cuts sequences into windows of at most max_history + 1 items with a loss on every item once.

    Every item but a sequence's first is a target of exactly one window. It sees all items before it there, or, beyond
    the first window of a sequence, at least max_history // 2 of them (at least one) and at most max_history.

    Returns:
        The windows, and for each the index of its first target; the items from there on are all targets.
    """
    if max_history < 1:
        raise ValueError(f"max_history: expected at least 1, got {max_history}")
    size, context = max_history + 1, max(1, max_history // 2)
    windows: list[np.ndarray] = []
    first_targets: list[int] = []
    for sequence in sequences:
        target = 1
        while target < len(sequence):
            # The last window of a sequence moves back until it is full: more history for its targets.
            start = max(0, min(target - context, len(sequence) - size))
            windows.append(sequence[start : start + size])
            first_targets.append(target - start)
            target = start + size
    return windows, first_targets


def _examples(dataset: Dataset, users: np.ndarray, *, target: int, max_history: int) -> Examples:
    histories = [dataset.sequences[user][:target][-max_history:] for user in users]
    targets = np.array([dataset.sequences[user][target] for user in users], dtype=np.int64)
    return Examples(dataset.user_ids[users], histories, targets)


def _load_items(path: Path) -> Items:
    table = read_table(path, required=("item_id",), optional=("title", "semantic_id"))
    item_ids = read_integers(table, "item_id", path)
    if len(item_ids) == 0:
        raise DataError(f"{path}: expected at least one item, got none")
    require_distinct(item_ids, "item_id", path)
    return Items(item_ids, titles=read_titles(table, path), semantic_ids=_semantic_ids(table, item_ids, path))


def read_titles(table: pa.Table, path: Path) -> list[str | None] | None:
    column = _optional_column(table, "title")
    if column is None:
        return None
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"{path}: column 'title': expected strings, got {column.type}")
    return column.to_pylist()


def _semantic_ids(table: pa.Table, item_ids: np.ndarray, path: Path) -> list[tuple[int, ...]] | None:
    column = _optional_column(table, "semantic_id")
    if column is None:
        return None

    def refuse(row: int, expected: str, got: object) -> DataError:
        return DataError(f"{path}: column 'semantic_id': item {item_ids[row]}: expected {expected}, got {got}")

    for row, found in enumerate(column.to_pylist()):
        if found is None or (isinstance(found, list) and None in found):
            raise refuse(row, "a code at every level, as other items have (or ids for no item at all)", found)
    values, lengths = read_integer_lists(table, "semantic_id", path)
    levels = int(lengths[0])
    if levels == 0:
        raise refuse(0, "at least one level", "an empty id")
    uneven = np.flatnonzero(lengths != levels)
    if len(uneven):
        row = int(uneven[0])
        raise refuse(row, f"{levels} levels, as item {item_ids[0]} has", f"{lengths[row]}: {column[row].as_py()}")
    codes = values.reshape(len(item_ids), levels)
    negative = np.flatnonzero((codes < 0).any(axis=1))
    if len(negative):
        raise refuse(int(negative[0]), "codes of 0 or more", codes[negative[0]].tolist())
    return [tuple(row) for row in codes.tolist()]


def _dense_indexes(values: np.ndarray, items: Items, path: Path) -> np.ndarray:
    order = np.argsort(items.item_ids)
    places = np.searchsorted(items.item_ids, values, sorter=order)
    indexes = order[np.minimum(places, len(order) - 1)]
    missing = np.unique(values[items.item_ids[indexes] != values])
    if len(missing):
        raise DataError(
            f"{path}: column 'item_ids': expected items of {ITEMS_FILE}, but {len(missing)} item ids are missing "
            f"there; the first: {', '.join(map(str, missing[:5]))}"
        )
    return indexes


def read_table(path: Path, *, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> pa.Table:
    if not path.is_file():
        raise DataError(f"{path}: expected a parquet file with the columns {', '.join(required)}, found no such file")
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for column in required:
                if column not in names:
                    raise DataError(f"{path}: column '{column}': expected, but the file has only {', '.join(names)}")
            return file.read(columns=[*required, *(column for column in optional if column in names)])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: expected a parquet file, got one that cannot be read: {error}") from error


def _optional_column(table: pa.Table, column: str) -> pa.ChunkedArray | None:
    if column not in table.column_names or table[column].null_count == table.num_rows:
        return None
    return table[column]


def read_integers(table: pa.Table, column: str, path: Path) -> np.ndarray:
    return _int64(table[column].combine_chunks(), column, path)


def read_integer_lists(table: pa.Table, column: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """All values one after another, and how many belong to each row; both int64."""
    lists = table[column].combine_chunks()
    if len(lists) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    kind = lists.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise DataError(f"{path}: column '{column}': expected lists of integers, got {kind}")
    if lists.null_count:
        raise DataError(f"{path}: column '{column}': expected a list in every row, got {lists.null_count} nulls")
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    return _int64(lists.flatten(), column, path), lengths


def _int64(values: pa.Array, column: str, path: Path) -> np.ndarray:
    if not pa.types.is_integer(values.type) and len(values):
        raise DataError(f"{path}: column '{column}': expected integers, got {values.type}")
    if values.null_count:
        raise DataError(f"{path}: column '{column}': expected no nulls, got {values.null_count}")
    try:
        return values.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: column '{column}': expected 64-bit integers, got {values.type}: {error}") from error


def optional_array(values: list[Any] | None, rows: int, kind: pa.DataType) -> pa.Array:
    """A column for writing; all null where there are no values."""
    return pa.nulls(rows, kind) if values is None else pa.array(values, type=kind)


def require_distinct(ids: np.ndarray, column: str, path: Path) -> None:
    values, counts = np.unique(ids, return_counts=True)
    repeated = values[counts > 1]
    if len(repeated):
        raise DataError(
            f"{path}: column '{column}': expected each id once, but {len(repeated)} are repeated; "
            f"the first: {', '.join(map(str, repeated[:5]))}"
        )


def _integer_type(values: np.ndarray) -> pa.DataType:
    fits = len(values) == 0 or (values.min() >= -(2**31) and values.max() < 2**31)
    return pa.int32() if fits else pa.int64()
