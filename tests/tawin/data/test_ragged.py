"""Ragged: what a list of arrays would give, without the list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tawin.data.ragged import Ragged, count_within

sequences_of_any_length = st.lists(st.lists(st.integers(0, 99), max_size=6), max_size=6)


def ragged_of(lists: list[list[int]]) -> Ragged:
    return Ragged.of([np.array(values, dtype=np.int32) for values in lists])


def as_lists(ragged: Ragged) -> list[list[int]]:
    return [values.tolist() for values in ragged]


def int64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@given(lists=sequences_of_any_length, count=st.integers(0, 7), data=st.data())
def test_cutting_choosing_and_flattening_give_what_lists_give(
    lists: list[list[int]], count: int, data: st.DataObject
) -> None:
    ragged = ragged_of(lists)
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=8) if lists else st.just([]))
    counts = data.draw(st.lists(st.integers(0, 7), min_size=len(lists), max_size=len(lists)))
    assert as_lists(ragged) == lists
    assert [ragged[row].tolist() for row in range(len(ragged))] == lists
    assert ragged.lengths.tolist() == [len(values) for values in lists]
    assert ragged.flat().tolist() == [value for values in lists for value in values]
    assert as_lists(ragged.drop_last(count)) == [values[: max(0, len(values) - count)] for values in lists]
    assert as_lists(ragged.last(count)) == [values[max(0, len(values) - count) :] for values in lists]
    taken = ragged.take(np.array(rows, dtype=np.int64))
    assert as_lists(taken) == [lists[row] for row in rows]
    assert taken.flat().tolist() == [value for row in rows for value in lists[row]]
    assert as_lists(ragged.drop_last(np.array(counts, dtype=np.int64))) == [
        values[: max(0, len(values) - cut)] for values, cut in zip(lists, counts, strict=True)
    ]


@given(lists=st.lists(st.lists(st.integers(0, 99), min_size=2, max_size=6), max_size=6), place=st.integers(-2, 1))
def test_one_place_of_every_sequence_is_read_at_once(lists: list[list[int]], place: int) -> None:
    assert ragged_of(lists).at(place).tolist() == [values[place] for values in lists]


@pytest.mark.parametrize("place", [-3, 2])
def test_a_place_that_a_sequence_lacks_is_refused_and_no_neighbour_read(place: int) -> None:
    with pytest.raises(IndexError, match=rf"place {place}: expected it in every sequence, but 1 has 2 values"):
        ragged_of([[1, 2, 3], [4, 5], [6, 7, 8]]).at(place)


def test_sequences_are_views_of_the_values_and_cuts_share_them() -> None:
    ragged = ragged_of([[1, 2, 3], [4, 5]])
    for one in (ragged[0], ragged[-1], next(iter(ragged)), ragged.last(1)[1], ragged.take(int64(1))[0]):
        assert np.shares_memory(one, ragged.values)
    assert not np.shares_memory(ragged.flat(), ragged.values)
    assert Ragged.of(ragged) is ragged


def test_it_is_indexed_like_a_list() -> None:
    ragged = ragged_of([[1, 2, 3], [], [4, 5]])
    assert ragged[np.int64(-1)].tolist() == [4, 5]
    assert as_lists(ragged[1:]) == [[], [4, 5]] and as_lists(ragged[::-1]) == [[4, 5], [], [1, 2, 3]]
    assert as_lists(ragged.take(np.array([True, False, True]))) == [[1, 2, 3], [4, 5]]
    assert ragged and not ragged[:0]
    assert [values.tolist() for values in reversed(ragged)] == [[4, 5], [], [1, 2, 3]]
    for row in (3, -4):
        with pytest.raises(IndexError):
            ragged[row]


def test_values_may_be_a_mapped_file(tmp_path: Path) -> None:
    np.save(tmp_path / "values.npy", np.arange(10, dtype=np.int32))
    ragged = Ragged(np.load(tmp_path / "values.npy", mmap_mode="r"), int64(5, 0), int64(8, 5))
    assert as_lists(ragged.drop_last(1)) == [[5, 6], [0, 1, 2, 3]]
    with pytest.raises(ValueError, match="read-only"):
        ragged[0][0] = 1


@pytest.mark.parametrize(
    ("starts", "stops", "message"),
    [
        (int64(0, 2), int64(2), r"stops: expected int64 \[2\], as starts is, got int64 \[1\]"),
        (int64(0).astype(np.int32), int64(2), r"stops: expected int32 \[1\], as starts is, got int64 \[1\]"),
        (np.zeros(1), int64(2), r"starts: expected int32 or int64 \[sequences\], got float64 \[1\]"),
        (int64(0)[None], int64(2), r"starts: expected int32 or int64 \[sequences\], got int64 \[1, 1\]"),
        (int64(-1), int64(2), r"expected 0 <= start <= stop <= 3.*got starts from -1"),
        (int64(0), int64(4), r"got starts from 0, stops to 4"),
        (int64(2, 0), int64(1, 0), r"1 stops before their start"),
    ],
)
def test_bounds_that_do_not_fit_the_values_are_refused(starts: np.ndarray, stops: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ragged(np.arange(3), starts, stops)


def test_values_of_two_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"values: expected one dimension, got shape \[2, 2\]"):
        Ragged(np.zeros((2, 2)), int64(0), int64(2))


def test_bounds_keep_their_type_whatever_cuts_them() -> None:
    bounds = np.array([0, 3, 5], dtype=np.int32)
    ragged = Ragged(np.arange(5), bounds[:-1], bounds[1:])
    for other in (ragged.drop_last(int64(1, 0)), ragged.last(1), ragged[1:], ragged.bounded(int64(2), int64(4))):
        assert other.starts.dtype == other.stops.dtype == other.lengths.dtype == np.int32
    assert as_lists(ragged.drop_last(int64(1, 0))) == [[0, 1], [3, 4]]
    assert ragged.flat().tolist() == [0, 1, 2, 3, 4]


def test_it_says_what_it_is() -> None:
    assert repr(ragged_of([[1, 2], [3]])) == "Ragged(2 sequences over 3 values, int32)"


def test_counting_starts_anew_in_every_stretch() -> None:
    assert count_within(int64(2, 0, 3)).tolist() == [0, 1, 0, 1, 2]
    assert count_within(int64()).tolist() == []
