"""Rankings by the negatives above each positive, against tawin's metrics and against every ranking that there is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.theory.rankings import above_of, every_ranking, recall_range, recalled, wins
from tawin import metrics


def test_won_pairs_and_recall_are_those_of_tawins_metrics() -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        positives, negatives = random.integers(0, 12, 4), random.integers(0, 10, 15)  # with ties
        above = above_of(positives, negatives)
        start = int(random.integers(0, 15))
        stop = int(random.integers(start + 1, 16))
        expected = metrics.wpauc(positives, negatives, start / 15, (stop - start) / 15)
        assert wins(above, start, stop) == round(expected * 4 * (stop - start))
        ranked = sorted([(-score, 0) for score in negatives] + [(-score, 1) for score in positives])
        assert recalled(above, stop) == sum(positive for _, positive in ranked[:stop])


def test_every_ranking_is_there_once() -> None:
    above = every_ranking(3, 5)
    assert len(np.unique(above, axis=0)) == len(above) == math.comb(8, 3)
    assert above.min() == 0 and above.max() == 5 and (np.diff(above, axis=1) >= 0).all()


@pytest.mark.parametrize("num_positives", [1, 2, 3])
def test_the_range_of_recall_is_that_of_all_rankings_with_as_many_won_pairs(num_positives: int) -> None:
    num_negatives = 7
    above = every_ranking(num_positives, num_negatives)
    for k in range(1, num_negatives + 1):
        found = recalled(above, k)
        for start in range(num_negatives):
            for stop in range(start + 1, num_negatives + 1):
                low, high = recall_range(num_positives, k, start, stop)
                won = wins(above, start, stop)
                for total in range(num_positives * (stop - start) + 1):
                    seen = found[won == total]
                    assert (low[total], high[total]) == (seen.min(), seen.max())


@pytest.mark.parametrize(("num_positives", "k"), [(1, 1), (1, 4), (3, 3), (3, 8), (7, 12)])
def test_for_the_theorems_window_the_range_is_theorem_3_4(num_positives: int, k: int) -> None:
    low, high = recall_range(num_positives, k, k - num_positives, k)
    for total in range(num_positives**2 + 1):
        bounds = metrics.recall_bounds(total / num_positives**2, num_positives)
        assert bounds == (low[total] / num_positives, high[total] / num_positives)
