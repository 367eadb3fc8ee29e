"""Recommendations for a file of histories: parquet or csv in, parquet or csv out, a chunk of users in memory at a time.

In: see `histories`. Out: as parquet the same users in the same order with `item_ids`, the log's own ids, and
`scores` (log p), best first; as csv a row per item. The file appears whole or not at all.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from tqdm import tqdm

from ..catalog.catalog import Catalog
from ..data.columns import DataError
from ..data.ragged import Ragged, count_within
from ..evaluate.ranking import Recommendations, recommend
from ..run.atomic import replacing_file
from .histories import Histories, HistoryFile, open_histories
from .load import Serving

BATCHES_A_CHUNK = 16  # users of like history length are searched for together: so many batches are sorted at a time
SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True)
class Served:
    """What became of a file of histories."""

    users: int = 0
    unknown_items: int = 0
    """Items of histories that the catalogue does not have: they were left out."""
    empty_histories: int = 0
    """Users without a known item. The model never learned what comes first of all: they get empty lists."""
    null_histories: int = 0
    """Those of them whose history is null."""
    seconds: float = 0.0
    known_before: int = 0
    """Users whose part was there already: `recommend_in_parts`."""

    def __add__(self, other: Served) -> Served:
        return Served(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def require_out(out: Path) -> None:
    """ValueError for a file that exists, or whose name does not say what it is to be."""
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out {out}: expected a name that ends in {' or '.join(SUFFIXES)}, got {out.suffix!r}")
    if out.exists():
        raise ValueError(f"--out {out}: exists already; choose another file or remove it first")


def recommend_file(
    serving: Serving,
    histories: Path,
    out: Path,
    *,
    top: int = 10,
    batch_size: int | None = None,
    exclude_history: bool = False,
    titles: bool = False,
    numbers: Path | None = None,
    progress: bool = False,
) -> Served:
    """Write the `top` items of every history.

    Args:
        out: a new file whose name ends in .parquet or .csv.
        top: items a user; fewer where the catalogue has no more. The search is never narrower than the evaluation's.
        batch_size: histories of one search (default: the run's).
        exclude_history: never recommend an item of the history; as the run's evaluation does where that is so anyway.
        titles: also write a column `titles`.
        numbers: see `open_histories`.

    Raises:
        ValueError: `out` exists or is neither.
        DataError: a file of histories that cannot be used, or in which no item is one of the catalogue.
    """
    require_out(out)
    options = serving.options.asked_for(top, exclude_history=exclude_history, batch_size=batch_size)
    serving = dataclasses.replace(serving, options=options)
    served, users_at_once = Served(), options.evaluation.batch_size * BATCHES_A_CHUNK
    with open_histories(histories, serving.catalog, numbers, users_at_once) as file:
        ids = item_ids_of(serving.catalog, as_text=file.as_text)
        schema = schema_of(file, ids, titles)
        bar = tqdm(total=file.rows, desc="recommend", unit="user", disable=None if progress else True)
        with bar, replacing_file(out) as part:
            out.parent.mkdir(parents=True, exist_ok=True)
            with writer_of(part, schema, out.suffix.lower()) as write:
                for chunk in file.chunks:
                    started = time.monotonic()
                    columns, counts = recommend_chunk(serving, chunk, ids, top, titles)
                    users = [] if chunk.users is None else [chunk.users]
                    write(pa.table([*users, *columns], schema=schema), served.users)
                    served += dataclasses.replace(counts, seconds=time.monotonic() - started)
                    bar.update(counts.users)
                require_known(served, serving.catalog, histories)
    return served


def schema_of(file: HistoryFile, ids: pa.Array, titles: bool) -> pa.Schema:
    """Of the output as parquet. ids: what items are called in it."""
    fields = [] if file.user_type is None else [pa.field("user_id", file.user_type)]
    kinds = {"item_ids": ids.type, "scores": pa.float32(), **({"titles": pa.string()} if titles else {})}
    return pa.schema([*fields, *(pa.field(name, pa.list_(kind)) for name, kind in kinds.items())])


def require_known(served: Served, catalog: Catalog, histories: Path) -> None:
    """DataError where no item of any history is one of the catalogue."""
    if served.unknown_items and served.empty_histories == served.users:
        raise DataError(
            f"{histories}: expected items of the run, like {', '.join(catalog.names[:3])}, but none of "
            f"{served.unknown_items:,} in it is one"
        )


def item_ids_of(catalog: Catalog, *, as_text: bool) -> pa.Array:
    """What items are called in the output: numbers where the log's ids are these, unless histories have text."""
    if not as_text and catalog.has_numbers:
        return pa.array(catalog.item_ids, pa.int64())
    return pa.array(catalog.names, pa.string())


@contextmanager
def writer_of(part: Path, schema: pa.Schema, suffix: str) -> Iterator[Any]:
    """A function that writes a table of some users, of which so many others stand before."""
    if suffix == ".parquet":
        with pq.ParquetWriter(part, schema, compression="zstd", write_page_checksum=True) as parquet:
            yield lambda table, _: parquet.write_table(table)
        return
    flat = _flat(schema.empty_table(), 0)
    with pa.csv.CSVWriter(part, flat.schema) as rows:
        yield lambda table, before: rows.write_table(_flat(table, before))


def _flat(table: pa.Table, before: int) -> pa.Table:
    """A row an item: the user, or the number of the row from 0; the rank from 1, the item, its score, its title."""
    lists = table["item_ids"].combine_chunks()
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    row = np.repeat(np.arange(len(lengths)), lengths)
    has_users = "user_id" in table.column_names
    who = table["user_id"].take(pa.array(row)) if has_users else pa.array(row + before, pa.int64())
    columns = {"user_id" if has_users else "row": who, "rank": pa.array(count_within(lengths) + 1, pa.int64())}
    for name, single in (("item_ids", "item_id"), ("scores", "score"), ("titles", "title")):
        if name in table.column_names:
            columns[single] = table[name].combine_chunks().flatten()
    return pa.table(columns)


def known_items(chunk: Histories) -> Ragged:
    """Each user's items that the catalogue has, as its rows."""
    user = np.repeat(np.arange(len(chunk.lengths)), chunk.lengths)
    known = chunk.items >= 0
    counts = np.bincount(user[known], minlength=len(chunk.lengths))
    return Ragged.of(np.split(chunk.items[known], np.cumsum(counts)[:-1]))


def recommend_chunk(
    serving: Serving, chunk: Histories, ids: pa.Array, top: int, titles: bool
) -> tuple[list[pa.Array], Served]:
    """The columns of the output but the users, for some of them, and what became of these."""
    lengths, known = chunk.lengths, chunk.items >= 0
    seen = known_items(chunk)
    counts = seen.lengths
    histories = seen.last(serving.options.max_history)
    asked = np.flatnonzero(counts)
    top = min(top, serving.catalog.num_items if serving.among is None else len(serving.among))
    found_items = np.full((len(lengths), top), -1, dtype=np.int64)
    found_scores = np.full((len(lengths), top), -np.inf, dtype=np.float32)
    if len(asked):
        found = recommend(
            serving.model,
            serving.catalog,
            histories.take(asked),
            serving.options.evaluation,
            seen=seen.take(asked),
            among=serving.among,
        )
        found_items[asked], found_scores[asked] = found.items[:, :top], found.scores[:, :top]
    columns = _columns(serving.catalog, Recommendations(found_items, found_scores), ids, titles)
    return columns, Served(len(lengths), int((~known).sum()), len(lengths) - len(asked), chunk.nulls)


def _columns(catalog: Catalog, found: Recommendations, ids: pa.Array, titles: bool) -> list[pa.Array]:
    present = found.items >= 0  # [users, top]; what is missing stands last
    offsets = np.concatenate([[0], present.sum(1).cumsum()]).astype(np.int32)
    items = found.items[present]
    values = [ids.take(pa.array(items)), pa.array(found.scores[present], pa.float32())]
    if titles:
        values.append(pa.array([catalog.title(int(item)) for item in items], pa.string()))
    return [pa.ListArray.from_arrays(offsets, column) for column in values]
