"""Synthetic data: deterministic, of the configured shape, and with the ceiling that it reports."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tawin.config import KS, SyntheticConfig
from tawin.data.dataset import Dataset
from tawin.data.synthetic import _draw_items, _draw_model, make_synthetic

SMALL = SyntheticConfig(num_users=200, num_items=60, num_clusters=6, min_length=4, max_length=8)


def recall_of(dataset: Dataset, ranked: np.ndarray, k: int) -> float:
    """Share of the users whose last item is among the first k of their row of `ranked`."""
    targets = np.array([sequence[-1] for sequence in dataset.sequences])
    return float((ranked[:, :k] == targets[:, None]).any(axis=1).mean())


def test_the_same_seed_draws_the_same_data() -> None:
    first, again, other = make_synthetic(SMALL, 3), make_synthetic(SMALL, 3), make_synthetic(SMALL, 4)
    assert all(np.array_equal(a, b) for a, b in zip(first.sequences, again.sequences, strict=True))
    assert first.items.titles == again.items.titles
    assert first.best_recall == again.best_recall
    assert first.best_recall != other.best_recall


@settings(max_examples=30, deadline=None)
@given(
    users=st.integers(1, 30),
    clusters=st.integers(2, 40),
    more_items=st.integers(0, 60),
    lengths=st.tuples(st.integers(3, 9), st.integers(0, 6)),
    seed=st.integers(0, 2**31),
)
def test_data_has_the_configured_shape(
    users: int, clusters: int, more_items: int, lengths: tuple[int, int], seed: int
) -> None:
    shortest, longest = lengths[0], lengths[0] + lengths[1]
    items = clusters + more_items
    dataset = make_synthetic(SyntheticConfig(users, items, clusters, shortest, longest), seed)
    assert len(dataset.sequences) == len(dataset.user_ids) == users
    assert all(shortest <= len(sequence) <= longest for sequence in dataset.sequences)
    assert all(sequence.dtype == np.int64 for sequence in dataset.sequences)
    assert all(sequence.min() >= 0 and sequence.max() < items for sequence in dataset.sequences)
    assert dataset.items.titles is not None and len(set(dataset.items.titles)) == items
    assert dataset.items.semantic_ids is None and dataset.users_left_out == 0
    assert dataset.best_recall is not None and list(dataset.best_recall) == list(KS)
    values = list(dataset.best_recall.values())
    assert values[0] > 0 and values == sorted(values) and values[-1] <= 1 + 1e-9  # sums of a float64 distribution
    if items <= max(KS):
        assert values[-1] == pytest.approx(1.0)


def test_next_item_probabilities_sum_to_one() -> None:
    model, _ = _draw_model(SMALL, np.random.default_rng(0))
    before, last = np.divmod(np.arange(60 * 60), 60)
    np.testing.assert_allclose(model.next_item(before, last).sum(axis=1), 1.0, rtol=1e-12)  # float64 sums of 60 terms


def test_sequences_are_drawn_from_the_distribution_that_the_ceiling_is_computed_from() -> None:
    config = SyntheticConfig(num_users=40_000, num_items=12, num_clusters=4, min_length=4, max_length=4)
    dataset = make_synthetic(config, 1)
    model, _ = _draw_model(config, np.random.default_rng(1))
    drawn = np.stack(dataset.sequences)
    for first, second in Counter(map(tuple, drawn[:, 1:3].tolist())):
        rows = drawn[(drawn[:, 1] == first) & (drawn[:, 2] == second), 3]
        expected = model.next_item(np.array([first]), np.array([second]))[0]
        # Six standard deviations of a binomial share, and one count for the smallest groups.
        tolerance = 6 * np.sqrt(expected * (1 - expected) / len(rows)) + 1 / len(rows)
        assert (np.abs(np.bincount(rows, minlength=12) / len(rows) - expected) <= tolerance).all()


def test_items_of_a_cluster_are_drawn_by_their_popularity() -> None:
    model, _ = _draw_model(SMALL, np.random.default_rng(0))
    clusters = np.repeat(np.arange(6), 5_000)
    items = _draw_items(model, clusters, np.random.default_rng(1))
    assert np.array_equal(model.clusters[items], clusters)
    shares = np.bincount(items, minlength=60) / 5_000
    np.testing.assert_allclose(shares, model.popularity, atol=6 * np.sqrt(0.25 / 5_000))  # six standard deviations


def test_the_true_model_reaches_its_ceiling_and_popularity_does_not_come_near() -> None:
    config = SyntheticConfig()
    dataset = make_synthetic(config, 0)
    assert dataset.best_recall is not None
    assert 0.4 < dataset.best_recall[3] < 0.6
    model, _ = _draw_model(config, np.random.default_rng(0))
    before, last = (np.array([sequence[place] for sequence in dataset.sequences]) for place in (-3, -2))
    ranked = np.argsort(-model.next_item(before, last), axis=1)
    counts = np.bincount(np.concatenate([sequence[:-2] for sequence in dataset.sequences]), minlength=config.num_items)
    popular = np.tile(np.argsort(-counts), (config.num_users, 1))
    for k in KS:
        # Four standard deviations of a share of 4000 users at most.
        assert recall_of(dataset, ranked, k) == pytest.approx(dataset.best_recall[k], abs=4 * np.sqrt(0.25 / 4000))
        assert recall_of(dataset, popular, k) < dataset.best_recall[k] / 2


def test_the_ceiling_does_not_depend_on_how_users_are_chunked() -> None:
    many = make_synthetic(SyntheticConfig(num_users=1500, num_items=30, num_clusters=5), 0)
    model, _ = _draw_model(SyntheticConfig(num_users=1500, num_items=30, num_clusters=5), np.random.default_rng(0))
    before, last = (np.array([sequence[place] for sequence in many.sequences]) for place in (-3, -2))
    ordered = -np.sort(-model.next_item(before, last), axis=1)
    expected = {k: ordered[:, :k].sum(axis=1).mean() for k in KS}
    assert many.best_recall == pytest.approx(expected)  # float64 throughout: rounding only
