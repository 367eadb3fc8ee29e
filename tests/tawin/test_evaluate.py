"""Ranks of targets among recommended items; histories left out where asked."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tawin.config import EvaluationConfig
from tawin.data import Examples
from tawin.evaluate import Recommendations, evaluate, recommend, sampled, target_ranks
from tawin.rollout import beam_search

from .models import tiny_model
from .test_objective import small_catalog

CONFIG = EvaluationConfig(beam_width=10, batch_size=2)
HISTORIES = [np.array(h) for h in ([0], [1, 2, 3], [5, 6], [4], [2, 0, 1, 3])]


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_recommendations_are_those_of_one_beam_search_a_history(normalizer) -> None:
    model, catalog = tiny_model("qwen2", seed=2), small_catalog()
    found = recommend(model, catalog, HISTORIES, dataclasses.replace(CONFIG, normalizer=normalizer))
    for row, history in enumerate(HISTORIES):
        alone = beam_search(model, *catalog.encode_histories([history]), catalog.trie, 10, normalizer=normalizer)
        assert found.items[row].tolist() == alone.item_ids[0].tolist()
        np.testing.assert_allclose(found.scores[row], alone.scores[0], atol=1e-4)  # fp32, padded differently
        assert sorted(found.items[row, :7]) == list(range(7)) and (found.items[row, 7:] == -1).all()


def test_an_excluded_history_is_not_recommended_and_the_rest_moves_up() -> None:
    model, catalog = tiny_model("qwen2", seed=2), small_catalog()
    everything = recommend(model, catalog, HISTORIES, CONFIG)
    without = recommend(model, catalog, HISTORIES, dataclasses.replace(CONFIG, exclude_history=True))
    for row, history in enumerate(HISTORIES):
        expected = [item for item in everything.items[row] if item >= 0 and item not in history]
        assert without.items[row].tolist() == expected + [-1] * (10 - len(expected))
        assert np.isneginf(without.scores[row, len(expected) :]).all()


def test_ranks_are_zero_based_and_minus_one_where_not_found() -> None:
    items = np.array([[3, 1, 2], [4, 0, -1]])
    found = Recommendations(items, np.zeros((2, 3), dtype=np.float32))
    assert target_ranks(found, np.array([2, 9])).tolist() == [2, -1]
    assert target_ranks(found, np.array([3, 0])).tolist() == [0, 1]


def test_the_whole_catalogue_in_the_beam_finds_every_target() -> None:
    model, catalog = tiny_model("qwen2", seed=2), small_catalog()
    examples = Examples(np.arange(5), HISTORIES, np.array([0, 1, 2, 3, 4]))
    figures = evaluate(model, catalog, examples, CONFIG)
    assert figures["recall@10"] == 1.0
    assert figures["recall@1"] == pytest.approx(figures["wpauc@1"])
    model.train()
    evaluate(model, catalog, examples, CONFIG)
    assert model.training


def test_sampling_is_the_same_for_the_same_seed() -> None:
    examples = Examples(np.arange(5), HISTORIES, np.arange(5))
    assert sampled(examples, None, 0) is examples
    assert sampled(examples, 3, 1).user_ids.tolist() == sampled(examples, 3, 1).user_ids.tolist()
    assert len(sampled(examples, 3, 1)) == 3
