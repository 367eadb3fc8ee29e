"""Counts against plain loops, their file, and recommendations mixed with them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tawin.catalog.catalog import Catalog
from tawin.config import CatalogConfig, EvaluationConfig
from tawin.data.dataset import DataError
from tawin.data.ragged import Ragged
from tawin.data.transitions import Transitions, count_transitions
from tawin.evaluate.exact import score_catalog
from tawin.evaluate.ranking import recommend
from tawin.model.policy import load_model
from tawin.serve.export import export
from tawin.serve.load import load_serving

from ..runs import SMALL, make_run

NUM_ITEMS = 40
TRAINING = [np.random.default_rng(seed).integers(0, NUM_ITEMS - 5, 9) for seed in range(30)]
HISTORIES = [np.array([3, 3, 1, 20, 7, 5, 30]), np.array([8]), np.array([NUM_ITEMS - 1]), np.array([], dtype=np.int64)]


def expected_shares(history: np.ndarray) -> np.ndarray:
    counts, popular = np.zeros((NUM_ITEMS, NUM_ITEMS)), np.ones(NUM_ITEMS)
    for item, times in zip(*np.unique(np.concatenate(TRAINING), return_counts=True), strict=True):
        popular[item] = times
    for sequence in TRAINING:
        for first in range(len(sequence)):
            for second in range(first + 1, min(first + 6, len(sequence))):
                counts[sequence[first], sequence[second]] += 1 / (second - first)
                counts[sequence[second], sequence[first]] += 0.5 / (second - first)
    scores = np.zeros(NUM_ITEMS)
    for age, item in enumerate(history[::-1][:5]):
        scores += 0.5**age * counts[item] / (popular[item] ** 0.5 * popular**0.3)
    return scores / scores.sum() if scores.sum() > 0 else scores


def test_shares_are_those_of_plain_loops_and_come_back_from_a_file(tmp_path: Path) -> None:
    counted = count_transitions(Ragged.of(TRAINING), NUM_ITEMS)
    expected = np.stack([expected_shares(history) for history in HISTORIES])
    assert expected[:2].sum() == pytest.approx(2) and not expected[2:].any()
    np.testing.assert_allclose(counted.shares(Ragged.of(HISTORIES)).toarray(), expected, rtol=1e-5, atol=1e-8)
    counted.save(tmp_path / "counts")
    again = Transitions.load(tmp_path / "counts", NUM_ITEMS)
    assert (again.matrix != counted.matrix).nnz == 0
    with pytest.raises(DataError, match=r"expected the counts of 39 items"):
        Transitions.load(tmp_path / "counts", NUM_ITEMS - 1)
    (tmp_path / "counts").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"expected the counts of 40 items, cannot read them"):
        Transitions.load(tmp_path / "counts", NUM_ITEMS)


@pytest.mark.parametrize("exclude", [False, True])
def test_recommendations_are_the_best_of_the_mixture_for_a_run_and_for_its_export(
    tmp_path: Path, exclude: bool
) -> None:
    evaluation = EvaluationConfig(
        beam_width=12, batch_size=2, counts_weight=0.4, exclude_history="yes" if exclude else "no"
    )
    config = dataclasses.replace(SMALL, catalog=CatalogConfig(item_tokens="item"), evaluation=evaluation)
    run = make_run(tmp_path / "run", config)
    counted = count_transitions(Ragged.of(TRAINING), NUM_ITEMS)
    counted.save(run.catalog / "transitions.safetensors")  # as a run that trains has it
    catalog, model = Catalog.load(run.catalog), load_model(run.checkpoints / "grpo").eval()
    with torch.no_grad():
        shares = score_catalog(model, *catalog.encode_histories(HISTORIES), catalog).exp().double().numpy()
    counts = counted.shares(Ragged.of(HISTORIES)).toarray()
    mixed = np.where(counts.sum(1, keepdims=True) > 0, 0.6 * shares + 0.4 * counts, shares)
    for row, history in enumerate(HISTORIES):
        mixed[row, history if exclude else []] = 0
    expected = np.argsort(-mixed, axis=1)[:, :12]

    export(run, tmp_path / "exported")
    for folder in (run.path, tmp_path / "exported"):
        serving = load_serving(folder)
        found = recommend(serving.model, serving.catalog, HISTORIES, serving.options.evaluation)
        np.testing.assert_array_equal(found.items, expected)
        np.testing.assert_allclose(found.scores, np.log(np.take_along_axis(mixed, expected, 1)), rtol=1e-4)


def test_a_catalogue_without_counts_is_not_mixed_with_any(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    config = dataclasses.replace(run.config.evaluation, counts_weight=0.4, exclude_history="no")
    with pytest.raises(ValueError, match=r"evaluation.counts_weight: expected 0 for a catalogue that was made without"):
        recommend(load_model(run.checkpoints / "grpo"), Catalog.load(run.catalog), HISTORIES, config)
