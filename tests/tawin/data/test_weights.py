"""Weights of interactions: read beside the sequences, and with each item wherever it goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tawin.data.columns import DataError
from tawin.data.dataset import (
    Dataset,
    Examples,
    Items,
    load_dataset,
    save_dataset,
    split_leave_one_out,
    target_windows,
    training_windows,
)
from tawin.data.digest import digest_of
from tawin.data.no_split import split_nothing
from tawin.data.ragged import Ragged
from tawin.data.time_split import split_by_time

ITEMS = 40


def dataset(users: int = 30) -> Dataset:
    """No user has an item twice, and an interaction weighs a tenth of its item's number: who has lost it is seen."""
    random = np.random.default_rng(0)
    sequences = Ragged.of([random.permutation(ITEMS)[: random.integers(3, 15)] for _ in range(users)])
    sequences = replace(sequences, weights=weights_of(sequences.values))
    times = Ragged(np.sort(random.integers(0, 1000, len(sequences.values))), sequences.starts, sequences.stops)
    return Dataset("made", np.arange(users), sequences, Items(np.arange(ITEMS)), times=times)


def weights_of(items: np.ndarray) -> np.ndarray:
    return ((items + 1) / 10).astype(np.float32)


def require_aligned(found: Ragged) -> None:
    weights = found.of_weights()
    assert weights is not None and len(found.flat())
    assert np.array_equal(weights.flat(), weights_of(found.flat()))


@pytest.mark.parametrize("split_by", [split_leave_one_out, split_by_time, split_nothing])
@pytest.mark.parametrize("options", [{}, {"rl_targets": 3, "rl_seen": 1}, {"rl_prompts": "all", "rl_share": 0.5}])
def test_a_weight_goes_with_its_item_into_every_part_of_every_split(split_by: Any, options: dict[str, Any]) -> None:
    split = split_by(dataset(), max_history=4, **options)
    for cut in (training_windows, target_windows):
        windows, _ = cut(split.sft, 4)
        require_aligned(windows)
    for examples in (split.rl, split.rl.take([2, 0]), split.rl.sample(5, seed=0)):
        weights = examples.all_weights()
        assert weights is not None and np.array_equal(weights, weights_of(examples.all_targets()))


def test_data_without_weights_has_none() -> None:
    made = dataset()
    made = replace(made, sequences=replace(Ragged.of(made.sequences), weights=None))
    assert split_leave_one_out(made).rl.all_weights() is None


@pytest.mark.parametrize("is_mapped", [False, True])
def test_weights_are_read_as_they_were_written(tmp_path: Path, is_mapped: bool) -> None:
    save_dataset(dataset(), tmp_path / "data")
    for _ in range(2):  # made, then found
        found = load_dataset(tmp_path / "data", memory_map=tmp_path / "map" if is_mapped else None)
        require_aligned(Ragged.of(found.sequences))
        assert digest_of(found) == digest_of(replace(dataset(), times=None))
    if is_mapped:
        (file,) = (tmp_path / "map").glob("*.weights.npy")
        np.save(file, np.ones(3, dtype=np.float32))
        with pytest.raises(DataError, match=r"weights.npy: expected the file that load_dataset wrote"):
            load_dataset(tmp_path / "data", memory_map=tmp_path / "map")


def test_other_weights_are_other_data() -> None:
    made = dataset()
    sequences = Ragged.of(made.sequences)
    assert sequences.weights is not None
    changed = sequences.weights.copy()
    changed[7] *= 2
    others = [replace(made, sequences=replace(sequences, weights=weights)) for weights in (changed, None)]
    assert len({digest_of(each).histories for each in (made, *others)}) == 3


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([[1.0, 2.0, 3.0, 4.0]], "expected as many weights as items"),
        ([[1.0, 2.0]], "expected weights of 1 users, got 0"),
        ([[1.0, 0.0, 2.0]], "expected numbers above 0, got 0"),
        ([[1.0, -1.0, 2.0]], "expected numbers above 0, got -1"),
        ([[1.0, float("nan"), 2.0]], "expected numbers above 0, got nan"),
        ([[1.0, None, 2.0]], "expected no nulls, got 1"),
        ([None], "expected lists of numbers, got null"),
        ([["a", "b", "c"]], "expected lists of numbers, got list"),
        ([1.0], "expected lists of numbers, got double"),
    ],
)
def test_weights_that_are_none_are_refused(tmp_path: Path, weights: list[Any], message: str) -> None:
    pq.write_table(pa.table({"item_id": [0, 1, 2]}), tmp_path / "items.parquet")
    table = {"user_id": pa.array([5]), "item_ids": pa.array([[0, 1, 2]]), "weights": pa.array(weights)}
    pq.write_table(pa.table(table), tmp_path / "interactions.parquet")
    with pytest.raises(DataError, match=f"column 'weights': {message}"):
        load_dataset(tmp_path)


def test_weights_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="weights: expected the shape of values"):
        replace(Ragged.of([np.arange(3)]), weights=np.ones(2, dtype=np.float32))


def test_a_row_of_fewer_targets_repeats_the_weight_of_its_first() -> None:
    also = replace(Ragged.of([np.array([5, 6]), np.array([], dtype=np.int64)]), weights=np.float32([2, 3]))
    examples = Examples(np.arange(2), [np.array([0])] * 2, np.array([1, 2]), also, weights=np.float32([4, 7]))
    assert examples.all_targets().tolist() == [[1, 5, 6], [2, 2, 2]]
    weights = examples.all_weights()
    assert weights is not None and weights.tolist() == [[4, 2, 3], [7, 7, 7]]
