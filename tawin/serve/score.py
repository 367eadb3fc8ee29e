"""Scores of given items for a file of histories: two files in, one out, a chunk of users in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from ..data.columns import DataError
from ..evaluate.candidates import score_candidates
from ..run.atomic import replacing_file
from .histories import Histories, HistoryFile, open_histories
from .load import Serving
from .recommend import BATCHES_A_CHUNK, item_ids_of, known_items, require_out, schema_of, writer_of


@dataclass(frozen=True)
class Scored:
    """What became of a file of histories and their candidates."""

    users: int = 0
    scores: int = 0
    unknown_items: int = 0
    unknown_candidates: int = 0
    """Candidates that the catalogue does not have: they were left out."""
    empty_histories: int = 0


def score_file(
    serving: Serving,
    histories: Path,
    candidates: Path,
    out: Path,
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> Scored:
    """Write the candidates of every history with their log p, in their own order.

    Args:
        histories, candidates: files as `open_histories` reads them. The candidates are those of the same users in the
            same order, or one row for all.
        out: a new file whose name ends in .parquet or .csv, as `recommend_file` writes it.
        batch_size: histories of one forward (default: the run's).

    Raises:
        ValueError: `out` exists or is neither.
        DataError: files that cannot be used; another number of rows, or other users; no known candidate.
    """
    require_out(out)
    size = batch_size or serving.options.evaluation.batch_size
    users_at_once, catalog = size * BATCHES_A_CHUNK, serving.catalog
    with (
        open_histories(histories, catalog, None, users_at_once) as file,
        open_histories(candidates, catalog, None, users_at_once) as given,
    ):
        if given.rows not in (1, file.rows):
            raise DataError(
                f"{candidates}: expected a row for each of the {file.rows:,} of {histories}, or one for all, got "
                f"{given.rows:,}"
            )
        ids = item_ids_of(catalog, as_text=given.as_text)
        schema = schema_of(file, ids, titles=False)
        total = Scored()
        out.parent.mkdir(parents=True, exist_ok=True)
        bar = tqdm(total=file.rows, desc="score", unit="user", disable=None if progress else True)
        with bar, replacing_file(out) as part, writer_of(part, schema, out.suffix.lower()) as write:
            for chunk, own in _pairs(file, given):
                columns, counts = _score_chunk(serving, chunk, own, ids, size)
                if chunk.users is not None and own.users is not None and given.rows > 1:
                    _require_same_users(chunk, own, histories, candidates)
                users = [] if chunk.users is None else [chunk.users]
                write(pa.table([*users, *columns], schema=schema), total.users)
                total = _sum(total, counts)
                bar.update(counts.users)
            if total.unknown_candidates and not total.scores and total.empty_histories < total.users:
                raise DataError(
                    f"{candidates}: expected items of the run, like {catalog.names[0]}, but none in it is one"
                )
    return total


def _sum(first: Scored, second: Scored) -> Scored:
    return Scored(*(getattr(first, name) + getattr(second, name) for name in Scored.__dataclass_fields__))


def _pairs(file: HistoryFile, given: HistoryFile) -> Iterator[tuple[Histories, Histories]]:
    """Chunks of users with the candidates of the same; row groups may cut the two files at other places."""
    if given.rows == 1:
        (one,) = given.chunks
        for chunk in file.chunks:
            yield (
                chunk,
                Histories(None, np.tile(one.items, len(chunk.lengths)), one.lengths.repeat(len(chunk.lengths)), 0),
            )
        return
    rest = (row for chunk in given.chunks for row in _rows(chunk))
    for chunk in file.chunks:
        rows = list(islice(rest, len(chunk.lengths)))
        users = None if not rows or rows[0][0] is None else pa.array([user for user, _ in rows])
        lengths = np.array([len(items) for _, items in rows], dtype=np.int64)
        yield chunk, Histories(users, np.concatenate([items for _, items in rows] or [chunk.items]), lengths, 0)


def _rows(chunk: Histories) -> Iterator[tuple[object, np.ndarray]]:
    users = [None] * len(chunk.lengths) if chunk.users is None else chunk.users.to_pylist()
    return zip(users, np.split(chunk.items, np.cumsum(chunk.lengths)[:-1]), strict=True)


def _require_same_users(chunk: Histories, own: Histories, histories: Path, candidates: Path) -> None:
    assert chunk.users is not None and own.users is not None
    for wanted, got in zip(chunk.users.to_pylist(), own.users.to_pylist(), strict=True):
        if wanted != got:
            raise DataError(f"{candidates}: expected the users of {histories} in their order, {wanted!r}, got {got!r}")


def _score_chunk(
    serving: Serving, chunk: Histories, own: Histories, ids: pa.Array, size: int
) -> tuple[list[pa.Array], Scored]:
    seen, asked = known_items(chunk), known_items(own)
    counts = np.where(seen.lengths > 0, asked.lengths, 0)  # int64 [users], scores of each
    shown = np.flatnonzero(counts)
    candidates = asked.take(shown)
    found = score_candidates(
        serving.model,
        serving.catalog,
        seen.last(serving.options.max_history).take(shown),
        list(candidates),
        normalizer=serving.options.evaluation.normalizer,
        batch_size=size,
    )
    offsets = pa.array(np.concatenate([[0], counts.cumsum()]), pa.int32())
    scores = np.concatenate(found) if found else np.zeros(0, dtype=np.float32)
    values = (ids.take(pa.array(candidates.flat().astype(np.int64))), pa.array(scores, pa.float32()))
    columns = [pa.ListArray.from_arrays(offsets, each) for each in values]
    return columns, Scored(
        users=len(counts),
        scores=len(scores),
        unknown_items=int((chunk.items < 0).sum()),
        unknown_candidates=int((own.items < 0).sum()),
        empty_histories=int((seen.lengths == 0).sum()),
    )
