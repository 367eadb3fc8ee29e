"""Interaction data: a folder of parquet files in, users' item sequences and leave-one-out examples out.

A folder holds `interactions.parquet` (`user_id`, `item_ids` oldest first, perhaps `times`) and `items.parquet`
(`item_id`, and where known `title` and `semantic_id`, one code a level). Interactions may have `weights`, which go with
the sequences as `Ragged.weights`. Everything that comes out addresses an item by
its row in items.parquet, the dense index 0..items-1; the original ids stay at the border. Sequences are `Ragged`:
bounds over one flat array, which `load_dataset` maps from a file where it is asked to. What is done to them here makes
new bounds, 8 bytes a sequence (16 beyond 2**31 interactions), and never a Python object a user. This module knows
nothing of tokens or models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..config.data import RLPrompts
from ..run.atomic import writing
from .columns import (
    DataError,
    integer_type,
    optional_array,
    optional_column,
    read_integer_lists,
    read_integers,
    read_source_ids,
    read_table,
    read_titles,
    require_distinct,
)
from .interactions import map_interactions, read_interactions, with_weights
from .item_columns import arrays_of, read_item_columns
from .ragged import Ragged, count_within
from .times import map_times, read_times

INTERACTIONS_FILE = "interactions.parquet"
ITEMS_FILE = "items.parquet"
CHUNK = 2**18  # sequences that are cut into windows at a time


@dataclass(frozen=True, eq=False)
class Items:
    """The catalogue as the data describes it; row i is the item of dense index i."""

    item_ids: np.ndarray
    """int64 [items], distinct, in any order."""
    titles: list[str | None] | None = None
    """None where the data has no titles at all; single items may lack one."""
    semantic_ids: list[tuple[int, ...]] | None = None
    """One code a level, all of one length; items may share one. None where the data has none."""
    source_ids: list[str] | None = None
    """The log's own ids, distinct; None: `item_ids` are these."""
    columns: pa.Table | None = None
    """What else the data says of items, a row per item: `item_columns`. None: nothing."""

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def names(self) -> list[str]:
        """The log's own ids, as text."""
        return [str(item) for item in self.item_ids.tolist()] if self.source_ids is None else self.source_ids

    def take(self, order: np.ndarray) -> Items:
        """The items at `order`, in that order."""

        def taken(values: list[Any] | None) -> list[Any] | None:
            return None if values is None else [values[place] for place in order]

        columns = None if self.columns is None else self.columns.take(pa.array(order))
        return Items(
            self.item_ids[order], taken(self.titles), taken(self.semantic_ids), taken(self.source_ids), columns
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """Users' complete sequences over a catalogue."""

    name: str
    user_ids: np.ndarray
    """int64 [users]"""
    sequences: Sequence[np.ndarray]
    """A user's items as dense indexes, integers, oldest first, at least three; a Ragged where they were loaded."""
    items: Items
    users_left_out: int = 0
    """Users of the file with fewer than three items, which have no train, valid and test item; they are not in here."""
    best_recall: dict[int, float] | None = None
    """Recall@K of the true model on the test items; known for synthetic data only."""
    times: Ragged | None = None
    """int64, when each interaction was, rising or staying within a user; None where they were not loaded."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Next-item examples: a history and the item that followed, or several of those."""

    user_ids: np.ndarray
    """int64 [N]"""
    histories: Sequence[np.ndarray]
    """Dense indexes, integers, oldest first, cut to the most recent ones; a Ragged where they come from a split."""
    targets: np.ndarray
    """int64 [N], the item that followed at once."""
    also: Ragged | None = None
    """Dense indexes of the items after it that count as targets too, in order, N sequences; None: there are none."""
    seen: Ragged | None = None
    """All items before the target, of which `histories` are the last ones; None: the histories are whole."""
    weights: np.ndarray | None = None
    """float32 [N], what the target's interaction weighs; those of `also` go with it. None: they have no weights."""

    def __len__(self) -> int:
        return len(self.targets)

    def all_targets(self) -> np.ndarray:
        """int64 [N, T], each example's target and the further ones, in order; a shorter row ends in its first again."""
        return _with_further(self.targets, self.also)

    def all_weights(self) -> np.ndarray | None:
        """float32 [N, T], what each of `all_targets` weighs; None: they have no weights."""
        if self.weights is None:
            return None
        return _with_further(self.weights, None if self.also is None else self.also.of_weights())

    def take(self, indexes: Sequence[int] | np.ndarray) -> Examples:
        """The examples at `indexes`, in that order."""
        rows = np.asarray(indexes, dtype=np.int64)
        also = None if self.also is None else self.also.take(rows)
        seen = None if self.seen is None else self.seen.take(rows)
        weights = None if self.weights is None else self.weights[rows]
        histories = Ragged.of(self.histories).take(rows)
        return Examples(self.user_ids[rows], histories, self.targets[rows], also, seen, weights)

    def sample(self, n: int, seed: int) -> Examples:
        """n examples without replacement, in their original order; all of them where n is not smaller."""
        if n < 0:
            raise ValueError(f"n: expected 0 or more, got {n}")
        if n >= len(self):
            return self
        return self.take(np.sort(np.random.default_rng(seed).choice(len(self), size=n, replace=False)))


def _with_further(first: np.ndarray, also: Ragged | None) -> np.ndarray:
    """[N, T]: `first` [N] and what is in `also` for each; a shorter row ends in its first again."""
    if also is None:
        return first[:, None]
    counts = also.lengths
    found = np.repeat(first[:, None], 1 + counts.max(initial=0), axis=1)  # [N, T]
    found[np.repeat(np.arange(len(first)), counts), 1 + count_within(counts)] = also.flat()
    return found


@dataclass(frozen=True, eq=False)
class Split:
    """Interactions for training (SFT and RL), for valid and for test."""

    sft: Sequence[np.ndarray]
    """Training sequences, one a user, each of at least two items."""
    rl: Examples
    valid: Examples
    test: Examples
    training: Sequence[np.ndarray] = ()
    """Every user's training items, SFT's and RL's, at least one: all that a catalogue may be built from."""


def load_dataset(
    folder: str | Path,
    *,
    memory_map: str | Path | None = None,
    with_times: bool = False,
    arrange: Callable[[Items], Items] | None = None,
) -> Dataset:
    """Reads a data folder and checks it. Other columns than these are left alone.

    Columns: interactions.parquet `user_id` integer, `item_ids` list of integers; items.parquet `item_id` integer, and
    optionally `title` string, `semantic_id` list of integers and `source_id` string, the log's own id (a column that is
    absent or all null is no column).
    Users with fewer than three items are left out and counted.

    memory_map: a folder for interactions that are not to be held in memory. They are written there once as flat arrays
    (4 bytes an interaction, 12 a user) and mapped from there; a changed source is converted anew. Titles and semantic
    ids are in memory either way.

    arrange: gives the items in another order, that of a catalogue; dense indexes are the rows in that one then.

    with_times: the column `times` of interactions.parquet too, a list of integers as long as `item_ids`.

    A column `weights` of interactions.parquet, lists of numbers above 0 as long as `item_ids`, becomes the weights of
    the sequences: how much each interaction counts in training.

    Raises:
        DataError: a file or column that is missing or of another type, nulls where a value is needed, repeated ids,
            items of interactions that items.parquet lacks, semantic ids that some items lack or that are of uneven
            length or negative, no interactions, nobody with three items, not as many weights as items, or weights that
            are not above 0; with_times: no times, or not as many as items, or times that fall.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with {INTERACTIONS_FILE} and {ITEMS_FILE}, found no such folder")
    items = _load_items(folder / ITEMS_FILE)
    items = items if arrange is None else arrange(items)
    path = folder / INTERACTIONS_FILE
    if memory_map is None:
        found = read_interactions(path, items.item_ids)
    else:
        found = map_interactions(path, items.item_ids, Path(memory_map))
    sequences = with_weights(path, found.sequences, items.item_ids, None if memory_map is None else Path(memory_map))
    times = None
    if with_times:
        if memory_map is None:
            times = read_times(path, found.sequences)
        else:
            times = map_times(path, found.sequences, items.item_ids, Path(memory_map))
    return Dataset(folder.resolve().name, found.user_ids, sequences, items, found.users_left_out, times=times)


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
    item_type = integer_type(items.item_ids)
    columns = {
        "user_id": pa.array(dataset.user_ids, type=integer_type(dataset.user_ids)),
        "item_ids": pa.array(original, type=pa.list_(item_type)),
    }
    if dataset.times is not None:
        columns["times"] = pa.array(list(dataset.times), type=pa.list_(pa.int64()))
    weights = Ragged.of(dataset.sequences).of_weights()
    if weights is not None:
        columns["weights"] = pa.array(list(weights), type=pa.list_(pa.float32()))
    catalogue = pa.table(
        {
            "item_id": pa.array(items.item_ids, type=item_type),
            "title": optional_array(items.titles, len(items), pa.string()),
            "semantic_id": optional_array(items.semantic_ids, len(items), pa.list_(pa.int64())),
            "source_id": optional_array(items.source_ids, len(items), pa.string()),
            **arrays_of(items.columns),
        }
    )
    with writing(folder):
        pq.write_table(pa.table(columns), folder / INTERACTIONS_FILE, write_page_checksum=True)
        pq.write_table(catalogue, folder / ITEMS_FILE, write_page_checksum=True)


def training_sequences(dataset: Dataset) -> Ragged:
    """Every user's items without the two that leave-one-out keeps back: all that a catalogue may be built from then."""
    return Ragged.of(dataset.sequences).drop_last(2)


def split_leave_one_out(
    dataset: Dataset,
    *,
    max_history: int = 10,
    rl_share: float = 1.0,
    rl_targets: int = 1,
    rl_seen: int = 0,
    rl_prompts: RLPrompts = "last",
    seed: int = 0,
) -> Split:
    """Splits each user's sequence: last item test, the one before valid, the rest training.

    For a share of the users with at least two training items the last `rl_targets` training interactions become the
    targets of an RL example, whose history is the training items before them. A user with too few for that keeps one
    item of history and has fewer targets. SFT has the items before the last `rl_targets - rl_seen` of them, if these
    are two: none of the targets by default, all of them where `rl_seen` is `rl_targets`. With rl_prompts "all" every
    training item of these users but the first is the target of an RL example.
    Histories are the last `max_history` items before the (first) target: of a valid item all training items count, of a
    test item the valid item too.
    """
    train = training_sequences(dataset)
    sft, rl = training_parts(
        dataset.user_ids,
        train,
        max_history=max_history,
        rl_share=rl_share,
        rl_targets=rl_targets,
        rl_seen=rl_seen,
        rl_prompts=rl_prompts,
        seed=seed,
    )
    return Split(
        sft=sft,
        rl=rl,
        valid=_examples(dataset, slice(None), target=-2, max_history=max_history),
        test=_examples(dataset, slice(None), target=-1, max_history=max_history),
        training=train,
    )


def training_parts(
    user_ids: np.ndarray,
    train: Ragged,
    *,
    max_history: int,
    rl_share: float,
    rl_targets: int,
    rl_seen: int,
    rl_prompts: str,
    seed: int,
) -> tuple[Ragged, Examples]:
    """What SFT and what RL get of the users' training items; see `split_leave_one_out`."""
    if max_history < 1:
        raise ValueError(f"max_history: expected at least 1, got {max_history}")
    if not 0.0 <= rl_share <= 1.0:
        raise ValueError(f"rl_share: expected a share in [0, 1], got {rl_share}")
    if rl_targets < 1:
        raise ValueError(f"rl_targets: expected at least 1, got {rl_targets}")
    if not 0 <= rl_seen <= rl_targets:
        raise ValueError(f"rl_seen: expected 0..{rl_targets}, the targets of RL that SFT may see, got {rl_seen}")
    eligible = np.flatnonzero(train.lengths >= 2)
    chosen = np.random.default_rng(seed).permutation(eligible)[: round(rl_share * len(eligible))]
    targets = np.zeros(len(train), dtype=train.lengths.dtype)  # [users], training interactions that RL asks for
    targets[chosen] = np.minimum(rl_targets, train.lengths[chosen] - 1)

    sft = train.drop_last(np.minimum(rl_targets - rl_seen, targets))
    if rl_prompts == "all":
        rl = _examples_everywhere(user_ids[chosen], train.take(chosen), max_history=max_history)
    else:
        rl = _rl_examples(user_ids, train, targets, several=rl_targets > 1, max_history=max_history)
    return sft.take(sft.lengths >= 2), rl


def training_windows(sequences: Sequence[np.ndarray], max_history: int) -> tuple[Ragged, np.ndarray]:
    """Cuts sequences into windows of at most max_history + 1 items with a loss on every item once.

    Every item but a sequence's first is a target of exactly one window. It sees all items before it there, or, beyond
    the first window of a sequence, at least max_history // 2 of them (at least one) and at most max_history.

    Returns:
        The windows, and for each the index of its first target, int32; the items from there on are all targets.
    """
    return _cut(sequences, max_history, _windows)


def target_windows(sequences: Sequence[np.ndarray], max_history: int) -> tuple[Ragged, np.ndarray]:
    """Cuts sequences into a window an item: it ends with the item, its only target, behind at most max_history others.

    Every item but a sequence's first is the target of exactly one window. Returns as `training_windows` does.
    """
    return _cut(sequences, max_history, _target_windows)


def _cut(
    sequences: Sequence[np.ndarray], max_history: int, cut: Callable[[Ragged, int], tuple[Ragged, np.ndarray]]
) -> tuple[Ragged, np.ndarray]:
    if max_history < 1:
        raise ValueError(f"max_history: expected at least 1, got {max_history}")
    ragged = Ragged.of(sequences)
    # A chunk at a time: what it takes to find the bounds is several times as large as they are.
    parts = [cut(ragged[first : first + CHUNK], max_history) for first in range(0, max(1, len(ragged)), CHUNK)]
    starts, stops = (np.concatenate([getattr(part, name) for part, _ in parts]) for name in ("starts", "stops"))
    return ragged.bounded(starts, stops), np.concatenate([first_targets for _, first_targets in parts])


def _target_windows(ragged: Ragged, max_history: int) -> tuple[Ragged, np.ndarray]:
    counts = np.maximum(ragged.lengths - 1, 0)  # [sequences], windows
    target = count_within(counts) + 1  # [windows], the item of the sequence
    first_targets = np.minimum(target, max_history)
    stops = np.repeat(ragged.starts, counts) + target + 1
    return ragged.bounded(stops - first_targets - 1, stops), first_targets.astype(np.int32)


def _windows(ragged: Ragged, max_history: int) -> tuple[Ragged, np.ndarray]:
    size, context = max_history + 1, max(1, max_history // 2)
    stride = size - context  # the new targets of a window: it begins `context` items before the first of them
    beyond = np.maximum(ragged.lengths - size, 0)  # [sequences], items that the first window does not hold
    counts = np.where(ragged.lengths >= 2, 1 - (-beyond // stride), 0)  # [sequences]
    number = count_within(counts)  # [windows], of the window in its sequence

    def of_sequence(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, counts)  # [windows]

    # The last window of a sequence moves back until it is full: more history for its targets.
    offsets = np.minimum(number * stride, of_sequence(beyond))  # in the sequence
    first_targets = np.where(number == 0, 1, number * stride + context - offsets)
    starts = of_sequence(ragged.starts) + offsets
    windows = ragged.bounded(starts, np.minimum(starts + size, of_sequence(ragged.stops)))
    return windows, first_targets.astype(np.int32)


def _examples(dataset: Dataset, users: np.ndarray | slice, *, target: int, max_history: int) -> Examples:
    sequences = Ragged.of(dataset.sequences).take(users)
    seen = sequences.drop_last(-target)
    targets = sequences.at(target).astype(np.int64)
    return Examples(dataset.user_ids[users], seen.last(max_history), targets, seen=seen)


def _rl_examples(
    user_ids: np.ndarray, train: Ragged, targets: np.ndarray, *, several: bool, max_history: int
) -> Examples:
    """Of the users who have targets: their last items as these, and the items before."""
    users = np.flatnonzero(targets)
    train, targets = train.take(users), targets[users]
    last = train.last(targets)
    seen = train.drop_last(targets)
    further = last.last(targets - 1) if several else None
    weights = last.of_weights()
    first = None if weights is None else weights.at(0)
    return Examples(user_ids[users], seen.last(max_history), last.at(0).astype(np.int64), further, seen, first)


def _examples_everywhere(user_ids: np.ndarray, train: Ragged, *, max_history: int) -> Examples:
    """An example for each item of each sequence but its first, behind all the items before it."""
    counts = train.lengths - 1
    starts = np.repeat(train.starts, counts)
    places = starts + 1 + count_within(counts)  # of the targets
    seen = train.bounded(starts, places)
    return Examples(
        np.repeat(user_ids, counts),
        seen.last(max_history),
        train.values[places].astype(np.int64),
        seen=seen,
        weights=None if train.weights is None else train.weights[places],
    )


def _load_items(path: Path) -> Items:
    table = read_table(path, required=("item_id",), optional=("title", "semantic_id", "source_id"))
    item_ids = read_integers(table, "item_id", path)
    if len(item_ids) == 0:
        raise DataError(f"{path}: expected at least one item, got none")
    require_distinct(item_ids, "item_id", path)
    return Items(
        item_ids,
        titles=read_titles(table, path),
        semantic_ids=_semantic_ids(table, item_ids, path),
        source_ids=read_source_ids(table, path),
        columns=read_item_columns(path),
    )


def _semantic_ids(table: pa.Table, item_ids: np.ndarray, path: Path) -> list[tuple[int, ...]] | None:
    column = optional_column(table, "semantic_id")
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
