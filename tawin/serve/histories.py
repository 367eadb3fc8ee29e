"""Files of histories: parquet with a list a user, csv with a row per item, or the interactions of a data folder.

Items are the log's own ids, as text or as whole numbers. A data folder numbers its users and items; what its
`interactions.parquet` speaks of is read from the files beside it. Called by `recommend`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ..catalog.catalog import Catalog
from ..data.columns import DataError, open_parquet, read_integers, read_source_ids, read_table
from ..data.dataset import INTERACTIONS_FILE, ITEMS_FILE
from ..data.source_ids import order_of, places_of

USERS_FILE = "users.parquet"


@dataclass(frozen=True)
class Histories:
    """Some users of a file."""

    users: pa.Array | None
    """As they go out; None where the file has none."""
    items: np.ndarray
    """int64, of all users one after another: the catalogue's rows, -1 = not in the catalogue."""
    lengths: np.ndarray
    """int64 [users]"""
    nulls: int
    """Users whose history is null: it has no items."""


@dataclass(frozen=True)
class HistoryFile:
    """An open file."""

    rows: int
    user_type: pa.DataType | None
    """Of `Histories.users`."""
    as_text: bool
    """Whether items are text in it."""
    chunks: Iterator[Histories]


@contextmanager
def open_histories(path: Path, catalog: Catalog, numbers: Path | None, users_at_once: int) -> Iterator[HistoryFile]:
    """Reads a file in chunks of users; csv is read as a whole.

    numbers: a data folder whose `item_id`s the file has; None: the log's own ids, or, of the interactions of a prepared
    data folder, that folder's.

    Raises:
        DataError: a file or column that cannot be used; a data folder with other items than the catalogue's.
    """
    if ".csv" in [suffix.lower() for suffix in path.suffixes]:
        table = _read_csv(path)
        names = _ItemIds(catalog, path, numbers)
        users = None
        parts = iter(table.to_batches(users_at_once))
        kind = table.schema.field("user_id").type
        yield HistoryFile(table.num_rows, kind, True, (_histories(part, names, users) for part in parts))
        return
    with open_parquet(path, ("item_ids",)) as file:
        is_of_folder = path.name == INTERACTIONS_FILE and _is_prepared(path.parent)
        names = _ItemIds(catalog, path, path.parent if is_of_folder and numbers is None else numbers)
        users = _UserIds(path.parent) if is_of_folder and (path.parent / USERS_FILE).exists() else None
        columns = [name for name in ("user_id", "item_ids") if name in file.schema_arrow.names]
        kind = file.schema_arrow.field("user_id").type if "user_id" in columns else None
        yield HistoryFile(
            file.metadata.num_rows,
            kind if users is None else users.kind,
            _is_text(_value_type(file.schema_arrow.field("item_ids").type, path)),
            (_histories(part, names, users) for part in file.iter_batches(users_at_once, columns=columns)),
        )


def _is_prepared(folder: Path) -> bool:
    """Whether the folder says what the log's own ids of its items are."""
    path = folder / ITEMS_FILE
    if not path.exists():
        return False
    with open_parquet(path, ("item_id",)) as file:
        return "source_id" in file.schema_arrow.names


class _ItemIds:
    """Rows of the catalogue from ids of a file."""

    def __init__(self, catalog: Catalog, path: Path, numbers: Path | None) -> None:
        self._catalog, self._path = catalog, path
        self._numbers: tuple[np.ndarray, np.ndarray] | None = None  # int64 [items], the folder's ids and their rows
        if numbers is not None:
            table = read_table(numbers / ITEMS_FILE, required=("item_id",), optional=("source_id",))
            item_ids = read_integers(table, "item_id", numbers / ITEMS_FILE)
            self._numbers = item_ids, rows_of_folder(catalog, item_ids, table, numbers)
        self._own = pa.array(catalog.names, pa.string())

    def rows(self, values: pa.Array) -> np.ndarray:
        """int64, -1 where the catalogue does not have it; null is no item."""
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if _is_text(values.type):
            return places_of(values.cast(pa.string()), self._own)
        if len(values) and not pa.types.is_integer(values.type) and not pa.types.is_null(values.type):
            raise DataError(f"{self._path}: column 'item_ids': expected lists of ids, got {values.type}")
        if self._numbers is None:
            return places_of(values.cast(pa.string()), self._own)
        known, rows = self._numbers
        places = pc.index_in(values.cast(pa.int64()), value_set=pa.array(known)).fill_null(-1).to_numpy()
        return np.where(places >= 0, rows[places], -1)


def rows_of_folder(catalog: Catalog, item_ids: np.ndarray, table: pa.Table, folder: Path) -> np.ndarray:
    """int64 [items]: the catalogue's row of each item of a data folder. DataError where its items are not the same."""
    sources = read_source_ids(table, folder / ITEMS_FILE)
    if catalog.source_ids is None or sources is None:
        sources = [str(item) for item in item_ids.tolist()]
    known = [str(item) for item in catalog.item_ids.tolist()] if catalog.source_ids is None else catalog.names
    order = order_of(sources, known, str(folder))
    rows = np.arange(len(known))
    if order is not None:
        rows[order] = np.arange(len(known))
    return rows


class _UserIds:
    """The log's own ids of a data folder's users."""

    def __init__(self, folder: Path) -> None:
        path = folder / USERS_FILE
        table = read_table(path, required=("user_id", "source_id"))
        self._numbers = pa.array(read_integers(table, "user_id", path))
        sources = read_source_ids(table, path)
        self._sources = pa.array(sources, pa.string())
        same = sources is None or sources == [str(number) for number in self._numbers.to_pylist()]
        self.kind = pa.int64() if same else pa.string()

    def named(self, users: pa.Array) -> pa.Array:
        if self.kind == pa.int64():
            return users.cast(pa.int64())
        return self._sources.take(pc.index_in(users.cast(pa.int64()), value_set=self._numbers))


def _histories(part: pa.RecordBatch, names: _ItemIds, users: _UserIds | None) -> Histories:
    lists = part.column("item_ids")
    own = part.column("user_id") if "user_id" in part.schema.names else None
    return Histories(
        users=own if own is None or users is None else users.named(own),
        items=names.rows(lists.flatten()),
        lengths=pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64),
        nulls=lists.null_count,
    )


def _value_type(kind: pa.DataType, path: Path) -> pa.DataType:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise DataError(f"{path}: column 'item_ids': expected lists of ids, got {kind}")
    return kind.value_type


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _read_csv(path: Path) -> pa.Table:
    """A row a user, in the order in which they are first seen; a user's items in the order of the file."""
    names = ("user_id", "item_id")
    if not path.is_file():
        raise DataError(f"{path}: expected a csv file with the columns user_id, item_id, found no such file")
    text = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    try:
        table = pa.csv.read_csv(path, convert_options=text)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a csv file, got one that cannot be read: {error}") from error
    for name in names:
        if name not in table.column_names:
            raise DataError(
                f"{path}: column '{name}': expected user_id and item_id, a row per item, oldest first, but the file "
                f"has only {', '.join(table.column_names)}"
            )
    users = table["user_id"].combine_chunks().dictionary_encode()
    codes = users.indices.to_numpy(zero_copy_only=False)
    items = table["item_id"].combine_chunks().take(pa.array(np.argsort(codes, kind="stable")))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(users.dictionary)))])
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), items)
    return pa.table({"user_id": users.dictionary, "item_ids": lists})
