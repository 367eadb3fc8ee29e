"""Semantic ids: balanced codes, shared ids told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tawin.catalog.item_vectors import cooccurrence_vectors
from tawin.catalog.semantic_ids import (
    build_semantic_ids,
    codes_used,
    residual_kmeans,
    separate_shared_ids,
)
from tawin.config import CatalogConfig, SyntheticConfig
from tawin.data.dataset import DataError, Dataset, Items, training_sequences
from tawin.data.synthetic import make_synthetic

DATASET = make_synthetic(SyntheticConfig(num_users=150, num_items=80, num_clusters=8), 0)


def with_ids(semantic_ids: list[tuple[int, ...]]) -> Dataset:
    items = Items(np.arange(len(semantic_ids)), semantic_ids=semantic_ids)
    return Dataset("made", np.array([0]), [np.array([0, 0, 0])], items)


def test_a_catalogue_of_one_item_has_a_vector_and_an_id() -> None:
    vectors = cooccurrence_vectors([np.array([0, 0, 0])], 1, dimensions=4)
    assert vectors.shape == (1, 4)
    assert residual_kmeans(vectors, levels=3, codes=256, seed=0).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("num_items", "levels", "codes", "expected"),
    [
        (11_924, 3, 256, 256),  # a large catalogue uses what it is given
        (500, 3, 256, 31),  # 16 items a code
        (500, 1, 256, 256),  # one level cannot tell 500 items apart with fewer
        (27, 3, 256, 3),  # 3 ** 3 = 27
        (28, 3, 256, 4),
        (1, 3, 256, 1),
        (500, 3, 5, 5),
    ],
)
def test_small_catalogues_use_fewer_codes(num_items: int, levels: int, codes: int, expected: int) -> None:
    assert codes_used(num_items, levels, codes) == expected


@settings(max_examples=60, deadline=None)
@given(
    items=st.integers(1, 90),
    distinct=st.integers(1, 90),
    dimensions=st.integers(1, 6),
    levels=st.integers(1, 4),
    codes=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_no_code_is_empty_and_ids_are_as_distinct_as_they_can_be(
    items: int, distinct: int, dimensions: int, levels: int, codes: int, seed: int
) -> None:
    # Few distinct vectors are the hard case: k-means alone leaves codes empty and items on the same id.
    vectors = np.random.default_rng(seed).normal(size=(distinct, dimensions)).astype(np.float32)
    ids = residual_kmeans(vectors[np.arange(items) % distinct], levels, codes, seed)
    used = codes_used(items, levels, codes)
    assert ids.shape == (items, levels) and ids.dtype == np.int64
    for level in range(levels):
        assert np.unique(ids[:, level]).tolist() == list(range(used))
    shared = np.unique(ids, axis=0, return_counts=True)[1]
    if used**levels >= items:
        assert shared.max() == 1
    if levels > 1:
        assert np.bincount(ids[:, 0]).max() <= -(-2 * items // used)


def test_one_level_spreads_items_evenly_over_too_few_codes() -> None:
    vectors = np.random.default_rng(0).normal(size=(100, 3))
    counts = np.bincount(residual_kmeans(vectors, levels=1, codes=10, seed=0)[:, 0])
    assert counts.tolist() == [10] * 10


def test_separate_blobs_get_first_codes_of_their_own() -> None:
    rng = np.random.default_rng(0)
    blob = np.repeat(np.arange(4), 20)
    vectors = (10 * rng.normal(size=(4, 8)))[blob] + rng.normal(size=(80, 8))
    first = residual_kmeans(vectors, levels=2, codes=4, seed=0)[:, 0]
    assert len(set(zip(blob.tolist(), first.tolist(), strict=True))) == 4


def test_later_codes_describe_what_the_first_left_over() -> None:
    # Two levels of structure: 5 far centres, and the same 5 offsets around each of them.
    rng = np.random.default_rng(1)
    coarse, fine = np.divmod(np.arange(25), 5)
    vectors = (100 * rng.normal(size=(5, 6)))[coarse] + (10 * rng.normal(size=(5, 6)))[fine]
    ids = residual_kmeans(vectors, levels=2, codes=5, seed=0)
    assert len(set(zip(coarse.tolist(), ids[:, 0].tolist(), strict=True))) == 5
    assert len(set(zip(fine.tolist(), ids[:, 1].tolist(), strict=True))) == 5


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_ids_do_not_depend_on_the_scale_of_the_vectors(scale: float) -> None:
    vectors = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    expected = residual_kmeans(vectors, 2, 8, seed=0)
    found = residual_kmeans(vectors * np.float32(scale), 2, 8, seed=0)
    # Rounding can flip a tie between two centres, nothing more.
    assert (expected == found).mean() > 0.9


def test_ids_are_drawn_by_the_seed() -> None:
    vectors = np.random.default_rng(0).normal(size=(300, 8))
    first, again, other = (residual_kmeans(vectors, 3, 256, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("vectors", "levels", "codes", "message"),
    [
        (np.zeros((0, 3)), 3, 8, r"vectors: expected \[items, dimensions\] with at least one item, got \[0, 3\]"),
        (np.zeros(5), 3, 8, r"vectors: expected \[items, dimensions\]"),
        (np.zeros((5, 3)), 0, 8, r"levels, codes: expected at least 1 each, got 0 and 8"),
        (np.zeros((5, 3)), 3, 0, r"levels, codes: expected at least 1 each, got 3 and 0"),
    ],
)
def test_ids_of_nothing_are_refused(vectors: np.ndarray, levels: int, codes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        residual_kmeans(vectors, levels, codes, seed=0)


def test_only_items_that_share_an_id_get_a_further_code() -> None:
    ids = [(1, 2), (3, 4), (1, 2), (1, 3), (1, 2)]
    assert separate_shared_ids(ids) == [(1, 2, 0), (3, 4), (1, 2, 1), (1, 3), (1, 2, 2)]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=30))
def test_separated_ids_are_distinct_and_none_begins_another(ids: list[tuple[int, ...]]) -> None:
    separated = separate_shared_ids(ids)
    assert [found[:2] for found in separated] == ids
    assert len(set(separated)) == len(ids)
    assert not {found[:2] for found in separated if len(found) == 3} & {found for found in separated if len(found) == 2}


def test_ids_of_the_data_are_kept_and_told_apart_as_asked() -> None:
    ids: list[tuple[int, ...]] = [(5, 6), (5, 6), (0, 0)]
    apart = build_semantic_ids(with_ids(ids), CatalogConfig(), training_sequences=[])
    assert apart == [(5, 6, 0), (5, 6, 1), (0, 0)]
    together = build_semantic_ids(with_ids(ids), CatalogConfig(separate_shared_ids=False), training_sequences=[])
    assert together == ids


def test_ids_of_25_levels_are_taken_and_of_26_refused() -> None:
    assert len(build_semantic_ids(with_ids([(0,) * 25]), CatalogConfig(), training_sequences=[])[0]) == 25
    with pytest.raises(DataError, match=r"made: column 'semantic_id': expected at most 25 levels, got 26"):
        build_semantic_ids(with_ids([(0,) * 26]), CatalogConfig(), training_sequences=[])


def test_built_ids_come_from_the_training_sequences_alone() -> None:
    changed = [np.concatenate([sequence[:-2], sequence[:2]]) for sequence in DATASET.sequences]
    other = Dataset("made", DATASET.user_ids, changed, DATASET.items)
    ids = [
        build_semantic_ids(dataset, CatalogConfig(), training_sequences=training_sequences(dataset))
        for dataset in (DATASET, other)
    ]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 80 and {len(found) for found in ids[0]} == {3}


def test_ids_of_the_data_are_built_anew_where_that_is_asked_for() -> None:
    given_ids = Items(DATASET.items.item_ids, semantic_ids=[(item, 0) for item in range(80)])
    with_given = Dataset("made", DATASET.user_ids, DATASET.sequences, given_ids)
    training = training_sequences(DATASET)
    kept, built = (
        build_semantic_ids(with_given, CatalogConfig(rebuild_ids=rebuild), training_sequences=training)
        for rebuild in (False, True)
    )
    assert kept == given_ids.semantic_ids
    assert built == build_semantic_ids(DATASET, CatalogConfig(), training_sequences=training)


def test_ids_are_built_from_a_vector_file_where_one_is_named(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(80, 5)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    config = CatalogConfig(vectors=str(tmp_path / "vectors.npy"), levels=2, codes=16)
    ids = build_semantic_ids(DATASET, config, training_sequences=[], seed=5)
    assert ids == [tuple(row) for row in residual_kmeans(vectors, 2, 16, seed=5).tolist()]
