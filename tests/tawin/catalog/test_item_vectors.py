"""Item vectors: from co-occurrence in the training sequences, or a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tawin.catalog.item_vectors import cooccurrence_vectors, load_vectors
from tawin.config import SyntheticConfig
from tawin.data.dataset import DataError, training_sequences
from tawin.data.synthetic import make_synthetic

DATASET = make_synthetic(SyntheticConfig(num_users=150, num_items=80, num_clusters=8), 0)


def blocks(count: int, size: int, sequences: int, seed: int) -> list[np.ndarray]:
    """Sequences that each stay inside one of `count` blocks of `size` items."""
    rng = np.random.default_rng(seed)
    return [rng.integers(size, size=8) + size * rng.integers(count) for _ in range(sequences)]


def test_items_of_the_same_sequences_get_close_vectors() -> None:
    vectors = cooccurrence_vectors(blocks(count=4, size=5, sequences=300, seed=0), 20, dimensions=8)
    assert vectors.shape == (20, 8) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)  # float32
    similarity = vectors @ vectors.T
    same_block = np.arange(20)[:, None] // 5 == np.arange(20) // 5
    assert similarity[same_block].min() > similarity[~same_block].max()


def test_vectors_tell_items_before_from_items_after() -> None:
    # 0 always comes just before 1 and 2 just after it; 3 keeps 0's place and 4 keeps 2's: neighbours on one side only.
    vectors = cooccurrence_vectors([np.array([0, 1, 2]), np.array([3, 1, 4])] * 10, 5, window=1, shift=1.0)
    similarity = vectors @ vectors.T
    assert similarity[0, 3] > 0.9 and similarity[2, 4] > 0.9
    assert abs(similarity[0, 2]) < 0.1


def test_pairs_farther_apart_than_the_window_and_of_different_sequences_do_not_count() -> None:
    sequences = [np.array([0, 1]), np.array([2, 3])]
    apart = [np.array([0, 1, 4, 4, 4, 2, 3])]
    for given_sequences in (sequences, apart):
        vectors = cooccurrence_vectors(given_sequences, 5, window=1, shift=1.0)
        near = np.flatnonzero(np.abs(vectors @ vectors[0]) > 0.5)
        assert set(near.tolist()) <= {0, 1}


@settings(max_examples=60, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(0, 7), max_size=6), max_size=8),
    num_items=st.integers(8, 12),
    dimensions=st.integers(1, 16),
    shift=st.sampled_from([1.0, 2.0, 5.0]),
)
def test_a_vector_is_of_unit_length_or_small_noise(
    sequences: list[list[int]], num_items: int, dimensions: int, shift: float
) -> None:
    arrays = [np.array(sequence, dtype=np.int64) for sequence in sequences]
    vectors = cooccurrence_vectors(arrays, num_items, dimensions, shift=shift)
    assert vectors.shape == (num_items, dimensions)
    lengths = np.linalg.norm(vectors, axis=1)
    assert (np.isclose(lengths, 1.0, rtol=1e-5) | (lengths < 0.01)).all()  # float32; NaN is neither


def test_vectors_do_not_change_from_run_to_run() -> None:
    sequences = training_sequences(DATASET)
    assert np.array_equal(cooccurrence_vectors(sequences, 80), cooccurrence_vectors(sequences, 80))


@pytest.mark.parametrize("sequences", [[], [np.array([0])], [np.array([1, 1, 1])], [np.zeros(0, dtype=np.int64)]])
@pytest.mark.parametrize("num_items", [2, 9])
def test_items_without_neighbours_get_small_distinct_vectors(sequences: list[np.ndarray], num_items: int) -> None:
    vectors = cooccurrence_vectors(sequences, num_items, dimensions=4)
    assert vectors.shape == (num_items, 4)
    assert np.linalg.norm(vectors, axis=1).min() > 0 and np.linalg.norm(vectors, axis=1).max() < 0.01
    assert len(np.unique(vectors, axis=0)) == num_items


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_vectors_of_a_file_come_as_float32(tmp_path: Path, dtype: type) -> None:
    np.save(tmp_path / "vectors.npy", np.arange(6).reshape(3, 2).astype(dtype))
    vectors = load_vectors(tmp_path / "vectors.npy", 3)
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0.0, 1.0], [np.nan, 2.0], [1.0, 1.0]]), r"NaN or infinity in 1 rows; the first: 1"),
        (np.array([[0.0, 1.0], [np.inf, 2.0], [1.0, -np.inf]]), r"NaN or infinity in 2 rows; the first: 1, 2"),
        (np.full((3, 2), 1e200), r"NaN or infinity in 3 rows"),  # too large for float32
        (np.zeros((4, 2)), r"real numbers \[3, dimensions\].*got shape \[4, 2\]"),
        (np.zeros(3), r"got shape \[3\]"),
        (np.zeros((3, 0)), r"got shape \[3, 0\]"),
        (np.zeros((3, 2), dtype=complex), r"got values of type complex128"),
        (np.zeros((3, 2), dtype=bool), r"got values of type bool"),
        (np.array([["a", "b"]] * 3), r"got values of type <U1"),
        (np.array([[None, {}]] * 3, dtype=object), r"got a file that cannot be read so"),
    ],
)
def test_a_bad_vector_file_is_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "vectors.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        load_vectors(tmp_path / "vectors.npy", 3)


def test_a_vector_file_that_is_missing_or_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.npy: .*cannot be read"):
        load_vectors(tmp_path / "nowhere.npy", 3)
    (tmp_path / "empty.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty.npy: .*cannot be read"):
        load_vectors(tmp_path / "empty.npy", 3)
    np.savez(tmp_path / "several.npz", np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"several.npz: .*archive of several arrays"):
        load_vectors(tmp_path / "several.npz", 3)
