"""Lemma 3.2: a beam's negatives against the best ones, on beams that are perfect, bad or tawin's own."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.theory import beam_density
from experiments.theory.beam_density import compare, negative_ranks, softmax_distance

from .small_options import BEAM_DENSITY as SMALL


def scores_and_targets(users: int = 5, items: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Log p over a catalogue: float64 [users, items], int64 [users]."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(users, items))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True)), random.integers(0, items, users)


def best_items(scores: np.ndarray, width: int) -> np.ndarray:
    return np.argsort(-scores, axis=1)[:, :width]


def test_the_best_items_have_opaucs_density_exactly() -> None:
    scores, targets = scores_and_targets()
    measured, densities = compare(scores, negative_ranks(scores, targets), targets, best_items(scores, 8))
    exact = {"overlap": 1.0, "distance": 0.0, "pooled distance": 0.0, "reach": 1.0, "lost above 1 / W": 0.0}
    assert {name: measured[name] for name in exact} == pytest.approx(exact, abs=1e-12)  # sums of a few fractions
    assert measured["margin error"] < 1e-12
    assert measured["opauc error"] == 0.0
    np.testing.assert_allclose(densities["beam density"].sum(), 1.0)


def test_a_beam_that_prunes_good_items_does_not() -> None:
    scores, targets = scores_and_targets()
    beams = best_items(scores, 16)[:, ::2]  # every second of the best
    measured, _ = compare(scores, negative_ranks(scores, targets), targets, beams)
    assert 0.3 < measured["distance"] < 0.7
    assert measured["distance"] == pytest.approx(1.0 - measured["overlap"])
    assert measured["pooled distance"] <= measured["distance"] + 1e-12
    assert measured["reach"] > 1.5
    assert measured["margin error"] > 0.05


def test_items_that_a_beam_must_not_lose_are_counted_where_it_does() -> None:
    scores = np.log(np.array([[0.6, 0.3, 0.1]]))
    targets = np.array([2])
    measured, _ = compare(scores, negative_ranks(scores, targets), targets, np.array([[1, 2]]))
    assert measured["lost above 1 / W"] == 1.0


def test_ranks_are_counted_among_the_negatives() -> None:
    ranks = negative_ranks(np.array([[0.1, 0.4, 0.3, 0.2]]), np.array([1]))
    assert ranks.tolist() == [[2, -1, 0, 1]]


def test_the_softmax_distance_is_that_to_the_nearest_opauc_density() -> None:
    scores, targets = scores_and_targets(users=3)
    expected = []
    for user, target in enumerate(targets):
        density = np.sort(np.exp(np.delete(scores[user], target)))[::-1]
        density /= density.sum()
        uniforms = [np.where(np.arange(29) < size, 1.0 / size, 0.0) for size in range(1, 30)]
        expected.append(min(np.abs(density - uniform).sum() / 2 for uniform in uniforms))
    distance, mean = softmax_distance(scores, targets)
    assert distance == pytest.approx(np.mean(expected), abs=1e-12)
    np.testing.assert_allclose(mean.sum(), 1.0)


def test_a_policy_that_is_uniform_has_the_density_of_the_whole_auc() -> None:
    distance, mean = softmax_distance(np.full((2, 5), -np.log(5)), np.array([0, 3]))
    assert distance == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(mean, 0.25)


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_from_the_width_of_the_widest_level_on_a_real_beam_loses_nothing(normalizer: str) -> None:
    values, series = beam_density.run({**SMALL, "normalizer": normalizer}, 0)
    assert 4 < values["widest level"] <= 32
    assert values["distance, W = 32"] == pytest.approx(0.0, abs=1e-12)
    assert values["margin error, W = 32"] == pytest.approx(0.0, abs=1e-9)
    assert values["distance, W = 1"] > 0.05, "a width that prunes has to show"
    assert all(values[f"lost above 1 / W, W = {width}"] == 0.0 for width in SMALL["widths"])
    assert series["width"] == [1.0, 4.0, 16.0, 32.0]
