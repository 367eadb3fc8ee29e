"""Recommendations for a file of histories: parquet in, parquet out, a chunk of users in memory at a time.

In: `item_ids`, a list of the catalogue's own item ids a row, oldest first; and, where there is one, a column `user_id`
of any type, which is handed on. Out: the same rows in the same order with `item_ids` and `scores` (log p), best first.
The file appears whole or not at all.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from .catalog import Catalog
from .columns import open_parquet, read_integer_lists
from .durable import replacing_file
from .evaluate import Recommendations, recommend
from .load import Serving
from .ragged import Ragged

BATCHES_A_CHUNK = 16  # users of like history length are searched for together: so many batches are sorted at a time


@dataclass(frozen=True)
class Served:
    """What became of a file of histories."""

    users: int = 0
    unknown_items: int = 0
    """Items of histories that the catalogue does not have: they were left out."""
    empty_histories: int = 0
    """Users without a known item. The model never learned what comes first of all: they get empty lists."""
    seconds: float = 0.0

    def __add__(self, other: Served) -> Served:
        return Served(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def recommend_file(
    serving: Serving,
    histories: Path,
    out: Path,
    *,
    top: int = 10,
    batch_size: int | None = None,
    exclude_history: bool = False,
    titles: bool = False,
    progress: bool = False,
) -> Served:
    """Write the `top` items of every history.

    Args:
        top: items a user; fewer where the catalogue has no more. The search is never narrower than the evaluation's.
        batch_size: histories of one search (default: the run's).
        exclude_history: never recommend an item of the history; as the run's evaluation does where that is so anyway.
        titles: also write a column `titles`.

    Raises:
        ValueError: `out` exists.
        DataError: a file that is no parquet or whose columns do not fit.
    """
    if out.exists():
        raise ValueError(f"--out {out}: exists already; choose another file or remove it first")
    options = serving.options.asked_for(top, exclude_history=exclude_history, batch_size=batch_size)
    serving = dataclasses.replace(serving, options=options)
    served = Served()
    with open_parquet(histories, ("item_ids",)) as file:
        names = [name for name in ("user_id", "item_ids") if name in file.schema_arrow.names]
        fields = [file.schema_arrow.field("user_id")] if "user_id" in names else []
        schema = pa.schema([*fields, *_output_fields(titles)])
        chunks = file.iter_batches(options.evaluation.batch_size * BATCHES_A_CHUNK, columns=names)
        bar = tqdm(total=file.metadata.num_rows, desc="recommend", unit="user", disable=None if progress else True)
        out.parent.mkdir(parents=True, exist_ok=True)
        with (
            bar,
            replacing_file(out) as part,
            pq.ParquetWriter(part, schema, compression="zstd", write_page_checksum=True) as writer,
        ):
            for chunk in chunks:
                started = time.monotonic()
                columns, counts = _recommend_chunk(serving, pa.Table.from_batches([chunk]), histories, top, titles)
                writer.write_table(pa.table([*(chunk[field.name] for field in fields), *columns], schema=schema))
                served += dataclasses.replace(counts, seconds=time.monotonic() - started)
                bar.update(chunk.num_rows)
    return served


def _output_fields(titles: bool) -> list[pa.Field]:
    kinds = {"item_ids": pa.int64(), "scores": pa.float32(), **({"titles": pa.string()} if titles else {})}
    return [pa.field(name, pa.list_(kind)) for name, kind in kinds.items()]


def _recommend_chunk(
    serving: Serving, chunk: pa.Table, path: Path, top: int, titles: bool
) -> tuple[list[pa.Array], Served]:
    values, lengths = read_integer_lists(chunk, "item_ids", path)
    items = index_items(serving.catalog, values)
    user = np.repeat(np.arange(len(lengths)), lengths)
    known = items >= 0
    counts = np.bincount(user[known], minlength=len(lengths))
    seen = Ragged.of(np.split(items[known], np.cumsum(counts)[:-1]))
    histories = seen.last(serving.options.max_history)
    asked = np.flatnonzero(counts)
    top = min(top, serving.catalog.num_items)
    found_items = np.full((len(lengths), top), -1, dtype=np.int64)
    found_scores = np.full((len(lengths), top), -np.inf, dtype=np.float32)
    if len(asked):
        found = recommend(
            serving.model,
            serving.catalog,
            histories.take(asked),
            serving.options.evaluation,
            seen=seen.take(asked),
        )
        found_items[asked], found_scores[asked] = found.items[:, :top], found.scores[:, :top]
    columns = _columns(serving.catalog, Recommendations(found_items, found_scores), titles)
    return columns, Served(len(lengths), int((~known).sum()), len(lengths) - len(asked))


def index_items(catalog: Catalog, item_ids: np.ndarray) -> np.ndarray:
    """The dense index of each original id, -1 where the catalogue does not have it; int64, of the same shape."""
    order = np.argsort(catalog.item_ids)
    ordered = catalog.item_ids[order]
    place = np.searchsorted(ordered, item_ids).clip(max=len(order) - 1)
    return np.where(ordered[place] == item_ids, order[place], -1)


def _columns(catalog: Catalog, found: Recommendations, titles: bool) -> list[pa.Array]:
    present = found.items >= 0  # [users, top]; what is missing stands last
    offsets = np.concatenate([[0], present.sum(1).cumsum()]).astype(np.int32)
    items = found.items[present]
    values = [pa.array(catalog.item_ids[items], pa.int64()), pa.array(found.scores[present], pa.float32())]
    if titles:
        values.append(pa.array([catalog.title(int(item)) for item in items], pa.string()))
    return [pa.ListArray.from_arrays(offsets, column) for column in values]
