"""When users' interactions were: the column `times` of interactions.parquet, one integer an interaction.

It is read beside the sequences, for the same users, into memory or into a memory-mapped file of 8 bytes an interaction
that is part of their mapped form (`<name>.times.npy`, see `interactions`). The unit is the data's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .columns import DataError, open_parquet, read_integer_list_batches
from .interactions import BATCH_USERS, MIN_ITEMS, form_of, map_beside
from .ragged import Ragged


def read_times(path: Path, sequences: Ragged) -> Ragged:
    """int64 times of the interactions of `sequences`, which are what `read_interactions` made of the file.

    Raises DataError: see `data.load_dataset`.
    """
    values = np.concatenate(list(_batches(path, sequences.lengths)))
    return Ragged(values, sequences.starts, sequences.stops)


def map_times(path: Path, sequences: Ragged, item_ids: np.ndarray, folder: Path) -> Ragged:
    """The same, memory-mapped, read-only, from `folder`, where it is written unless it is there."""
    header, _ = form_of(path, item_ids, folder)
    batches = _batches(path, sequences.lengths)
    values = map_beside(header, "times", np.int64, batches, len(sequences.values))
    return Ragged(values, sequences.starts, sequences.stops)


def _batches(path: Path, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """int64 times of the users with enough items, one after another; lengths: how many items each of them has."""
    with open_parquet(path, ("user_id", "item_ids")) as file:
        names = file.schema_arrow.names
    if "times" not in names:
        raise DataError(
            f"{path}: column 'times': expected for a split by time, but the file has only {', '.join(names)}; "
            "`tawin prepare` writes it where the source has times"
        )
    done = 0
    for values, counts in read_integer_list_batches(path, "times", BATCH_USERS):
        is_kept = counts >= MIN_ITEMS
        kept, belongs = counts[is_kept], np.repeat(is_kept, counts)
        if not np.array_equal(kept, lengths[done : done + len(kept)]):
            raise DataError(f"{path}: column 'times': expected as many times as items of each user, got others")
        done += len(kept)
        values = values[belongs]
        falls = values[1:] < values[:-1]
        falls[np.cumsum(kept)[:-1] - 1] = False  # where the next user begins
        if falls.any():
            raise DataError(
                f"{path}: column 'times': expected each user's times to rise or stay, oldest first, but "
                f"{int(falls.sum())} are earlier than the one before"
            )
        yield values
    if done != len(lengths):
        raise DataError(f"{path}: column 'times': expected times of {len(lengths)} users, got {done}")
