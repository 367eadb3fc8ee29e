"""When two datasets are the same data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tawin.data import digest as data_digest
from tawin.data.columns import DataError
from tawin.data.dataset import Dataset, Items
from tawin.data.digest import Digest, Origin, digest_of, read_origin, require_same_data
from tawin.data.ragged import Ragged

NAMES = ["GIFT", "007", "7", "b", "c"]
SEQUENCES = st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=6), min_size=1, max_size=8)


def dataset_of(sequences: list[list[int]], order: list[int] | None = None) -> Dataset:
    """Items 0..4 by their names, numbered in `order`."""
    order = order or list(range(5))
    place = {item: number for number, item in enumerate(order)}
    return Dataset(
        "made",
        np.arange(len(sequences)),
        Ragged.of([np.array([place[item] for item in sequence]) for sequence in sequences]),
        Items(np.arange(5), source_ids=[NAMES[item] for item in order]),
    )


@given(sequences=SEQUENCES, order=st.permutations(list(range(5))), data=st.data(), chunk=st.integers(1, 12))
def test_numbers_of_items_and_the_order_of_users_do_not_count(
    sequences: list[list[int]], order: list[int], data: st.DataObject, chunk: int
) -> None:
    known = digest_of(dataset_of(sequences))
    others = data.draw(st.permutations(sequences))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_digest, "CHUNK", chunk)
        found = digest_of(dataset_of(others, list(order)))
    assert dataclasses.replace(found, order=known.order) == known
    assert (found.order == known.order) == (others == sequences)


@given(first=SEQUENCES, second=SEQUENCES)
def test_other_histories_are_other_data(first: list[list[int]], second: list[list[int]]) -> None:
    digests = [digest_of(dataset_of(sequences)) for sequences in (first, second)]
    assert (digests[0].histories == digests[1].histories) == (sorted(first) == sorted(second))


def test_times_count_where_they_are_loaded() -> None:
    dataset = dataset_of([[0, 1, 2], [2, 1, 0]])
    early, late = (
        dataclasses.replace(dataset, times=Ragged.of([np.array([1, 2, 3]), np.array([1, 2, last])])) for last in (3, 4)
    )
    assert digest_of(early).histories != digest_of(late).histories
    assert digest_of(early) == digest_of(dataclasses.replace(early))


def test_what_was_saved_is_compared_and_refused_by_name(tmp_path: Path) -> None:
    dataset = dataset_of([[0, 1, 2], [2, 1, 0]])
    assert read_origin(tmp_path) is None and require_same_data(dataset, None, "DATA")
    Origin("/somewhere/DATA", digest_of(dataset)).save(tmp_path)
    origin = read_origin(tmp_path)
    assert origin == Origin("/somewhere/DATA", digest_of(dataset))
    assert require_same_data(dataset, origin, "DATA")
    assert not require_same_data(dataset_of([[2, 1, 0], [0, 1, 2]]), origin, "DATA")
    with pytest.raises(DataError, match=r"2 users and 6 interactions, got other histories, 1 users"):
        require_same_data(dataset_of([[0, 1, 2]]), origin, "DATA")
    with pytest.raises(DataError, match="got other items"):
        require_same_data(
            dataclasses.replace(dataset, items=Items(np.arange(5), source_ids=[*"abcde"])), origin, "DATA"
        )
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(DataError, match=r"data.json: expected the file that training writes"):
        read_origin(tmp_path)


def test_a_digest_is_the_same_tomorrow() -> None:
    """It is kept in run folders: what it is made of may not change."""
    found = digest_of(dataset_of([[0, 1, 2], [2, 1, 0, 4]]))
    assert found == Digest(found.items, 2, 7, "51aa8d123ead9fc893677279f97e9d55", "b2f6e791a4e97fc0")
