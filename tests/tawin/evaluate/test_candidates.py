"""Scores of given items, against those of the whole catalogue, and vectors, against the model's own logits."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from tawin.evaluate import candidates as module
from tawin.evaluate.candidates import score_candidates
from tawin.evaluate.exact import score_catalog
from tawin.evaluate.vectors import item_vectors, user_vectors
from tawin.serve.load import Serving, load_serving

from ..runs import SMALL, make_run

HISTORIES = [np.array([3, 7, 11]), np.array([20]), np.array([1, 2])]
CANDIDATES = [np.array([9, 0, 39, 9, 12, 5]), np.array([], dtype=np.int64), np.array([20])]


@pytest.fixture(scope="module", params=["item", "semantic_id"])
def serving(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Serving:
    catalog = dataclasses.replace(SMALL.catalog, item_tokens=request.param)
    config = dataclasses.replace(SMALL, catalog=catalog)
    return load_serving(make_run(tmp_path_factory.mktemp("candidates") / "run", config).path)


def all_scores(serving: Serving, normalizer: Any = "vocab") -> np.ndarray:
    prompts = serving.catalog.encode_histories(HISTORIES)
    with torch.no_grad():
        return score_catalog(serving.model, *prompts, serving.catalog, normalizer=normalizer).numpy()


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@pytest.mark.parametrize("chunk", [256, 2])
def test_candidates_score_as_in_the_whole_catalogue(
    serving: Serving, normalizer: Any, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    found = score_candidates(serving.model, serving.catalog, HISTORIES, CANDIDATES, normalizer=normalizer, batch_size=2)
    expected = all_scores(serving, normalizer)
    for row, items in enumerate(CANDIDATES):
        assert found[row].dtype == np.float32
        np.testing.assert_allclose(found[row], expected[row, items], atol=1e-4)  # sums in another order


def test_products_of_vectors_are_logits_where_an_item_is_a_token(serving: Serving) -> None:
    users = user_vectors(serving.model, serving.catalog, HISTORIES, batch_size=2)
    items = item_vectors(serving.model, serving.catalog)
    hidden = serving.model.config.hidden_size
    assert users.shape == (3, hidden) and items.shape == (40, hidden) and users.dtype == items.dtype == np.float32
    if serving.catalog.max_item_length > 1:
        alone = user_vectors(serving.model, serving.catalog, [np.array([17])])
        np.testing.assert_allclose(items[17], alone[0], atol=1e-4)
        return
    scores = all_scores(serving)
    logits = users @ items.T
    shift = logits - scores  # the logarithm of the softmax's sum: one number a user
    np.testing.assert_allclose(shift, shift[:, :1].repeat(40, axis=1), atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": CANDIDATES[:2]}, "candidates: expected a list for each of 3 histories, got 2"),
        ({"candidates": [np.array([40])] * 3}, r"candidates: expected items in \[0, 40\), got 40..40"),
        ({"histories": [np.array([-1])] * 3}, r"histories: expected items in \[0, 40\), got -1..-1"),
        ({"histories": [np.array([], dtype=np.int64)] * 3}, "histories: expected at least one item in each"),
        ({"normalizer": "all"}, "normalizer: expected 'vocab' or 'trie', got 'all'"),
        ({"batch_size": 0}, "batch_size: expected an int of at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(serving: Serving, changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"histories": HISTORIES, "candidates": CANDIDATES, **changes}
    with pytest.raises(ValueError, match=message):
        score_candidates(serving.model, serving.catalog, **arguments)
