"""Vectors of items and of users as files: .npy, or .parquet with their ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..evaluate.vectors import item_vectors, user_vectors
from ..model.backbone import backbone
from ..run.atomic import replacing_file
from .histories import open_histories
from .load import Serving
from .recommend import BATCHES_A_CHUNK, item_ids_of, known_items

SUFFIXES = (".parquet", ".npy")


def require_vectors_out(out: Path, option: str = "out") -> None:
    """ValueError for a file that exists, or whose name does not say what it is to be."""
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{option} {out}: expected a name that ends in {' or '.join(SUFFIXES)}, got {out.suffix!r}")
    if out.exists():
        raise ValueError(f"{option} {out}: exists already; choose another file or remove it first")


def write_item_vectors(serving: Serving, out: Path) -> tuple[int, int]:
    """The vectors of `item_vectors`: .npy fp32 [items, H] in the order of the catalogue's items.parquet; .parquet with
    `item_id`, the log's own, and `vector`. Returns the number of items and H.

    Raises:
        ValueError: `out` exists or is neither.
    """
    require_vectors_out(out)
    found = item_vectors(serving.model, serving.catalog, batch_size=serving.options.evaluation.batch_size)
    ids = item_ids_of(serving.catalog, as_text=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(out) as part:
        if out.suffix.lower() == ".npy":
            _save(part, found)
        else:
            pq.write_table(pa.table({"item_id": ids, "vector": _lists(found)}), part, write_page_checksum=True)
    return len(found), found.shape[1]


def write_user_vectors(serving: Serving, histories: Path, out: Path, *, progress: bool = False) -> tuple[int, int]:
    """The vectors of `user_vectors` for a file of histories, zeros where it has no known item: .npy fp32 [users, H];
    .parquet, a chunk of users in memory at a time, with `vector` and, where the file has it, `user_id`.

    Returns the number of users and H.

    Raises:
        ValueError: `out` exists or is neither.
        DataError: a file of histories that cannot be used.
    """
    require_vectors_out(out)
    options, hidden = serving.options, backbone(serving.model).weight.shape[1]
    size = options.evaluation.batch_size
    out.parent.mkdir(parents=True, exist_ok=True)
    with open_histories(histories, serving.catalog, None, size * BATCHES_A_CHUNK) as file, replacing_file(out) as part:
        fields = [] if file.user_type is None else [pa.field("user_id", file.user_type)]
        schema = pa.schema([*fields, pa.field("vector", pa.list_(pa.float32(), hidden))])
        is_array = out.suffix.lower() == ".npy"
        whole = np.lib.format.open_memmap(part, "w+", np.float32, (file.rows, hidden)) if is_array else None
        writer = None if is_array else pq.ParquetWriter(part, schema, compression="zstd", write_page_checksum=True)
        done = 0
        with tqdm(total=file.rows, desc="vectors", unit="user", disable=None if progress else True) as bar:
            for chunk in file.chunks:
                seen = known_items(chunk)
                shown = np.flatnonzero(seen.lengths)
                found = np.zeros((len(seen), hidden), dtype=np.float32)
                recent = seen.last(options.max_history).take(shown)
                found[shown] = user_vectors(serving.model, serving.catalog, recent, batch_size=size)
                if whole is not None:
                    whole[done : done + len(found)] = found
                if writer is not None:
                    users = [] if chunk.users is None else [chunk.users]
                    writer.write_table(pa.table([*users, _lists(found)], schema=schema))
                done += len(found)
                bar.update(len(found))
        if whole is not None:
            whole.flush()
        if writer is not None:
            writer.close()
    return done, hidden


def _save(path: Path, values: np.ndarray) -> None:
    with open(path, "wb") as file:  # np.save adds .npy to a name
        np.save(file, values)


def _lists(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
