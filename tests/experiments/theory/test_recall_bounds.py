"""Theorem 3.4 and Lemma 3.5: no violation with the theorem's window, many with a neighbouring one."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.theory import recall_bounds
from experiments.theory.rankings import every_ranking, recalled, wins
from experiments.theory.recall_bounds import is_within, mean_range, random_rankings
from tawin import metrics

from .small_options import RECALL_BOUNDS as SMALL


@pytest.fixture(scope="module")
def result() -> tuple[dict[str, float], dict[str, list[float]]]:
    return recall_bounds.run(SMALL, 0)


def test_nothing_violates_the_theorem_or_the_lemma(result: tuple[dict[str, float], dict[str, list[float]]]) -> None:
    values, _ = result
    assert values["rankings checked, exhaustive"] == 6 * 7 + 5 * 28 + 4 * 84
    assert values["random rankings checked"] == 40 * (3 + 2)  # n+ = 3 at K = 3 and 5 only
    assert not any(value for name, value in values.items() if name.startswith(("violations", "differences")))
    assert values["share of bounds that are reached"] == 1.0


def test_the_widths_are_zero_for_one_user_with_one_target_and_smallest_for_wpauc(
    result: tuple[dict[str, float], dict[str, list[float]]],
) -> None:
    values, series = result
    assert all(values[f"width {metric}, n+ = 1, K = 5"] == 0.0 for metric in ("auc", "opauc", "wpauc"))
    assert values["width wpauc, n+ = 3, K = 5"] <= values["width best opauc, n+ = 3, K = 5"]
    assert values["width opauc, n+ = 3, K = 5"] < values["width auc, n+ = 3, K = 5"]
    assert values["width of the mean wpauc, K = 5"] == pytest.approx(0.0, abs=1e-12)
    assert values["width of the mean opauc, K = 5"] > 0.05
    assert np.isnan(series["width wpauc, n+ = 3"]).tolist() == [True, False, False]


@pytest.mark.parametrize("shift", [-1, 1])
def test_the_window_one_rank_off_violates_the_bounds(shift: int) -> None:
    above, count, k = every_ranking(2, 8), 2, 4
    broken = 0
    for ranking in above:
        weight = int(wins(ranking, k - count + shift, k + shift)) / count**2
        low, high = metrics.recall_bounds(weight, count)
        broken += not low <= int(recalled(ranking, k)) / count <= high
    assert broken > 0


def test_a_recall_that_is_not_the_rankings_own_is_found_out() -> None:
    best = np.zeros(3, dtype=np.int64)  # all three targets first
    assert is_within(best, 20, 5) == (True, True, 1.0)
    assert is_within(best, 20, 5, found=2)[:2] == (False, True)
    worst = np.full(3, 20)
    assert is_within(worst, 20, 5, found=1)[:2] == (True, False)


@pytest.mark.parametrize(("start", "stop"), [(0, 40), (0, 5), (4, 5), (2, 7)])
def test_the_range_of_the_mean_holds_and_is_reached_by_some_users(start: int, stop: int) -> None:
    random, k = np.random.default_rng(0), 5
    for _ in range(20):
        above = random_rankings(random, 30, 1, 40)
        low, high = mean_range(float(wins(above, start, stop).mean()) / (stop - start), k, start, stop)
        recall = float(recalled(above, k).mean())
        assert low - 1e-12 <= recall <= high + 1e-12
    # Users who are found at rank K - 1 or not at all, and users who are found first or just missed.
    for found_at, missed_at, is_high in ((k - 1, 40, True), (0, k, False)):
        above = np.repeat([[found_at], [missed_at]], [12, 28], axis=0)
        bounds = mean_range(float(wins(above, start, stop).mean()) / (stop - start), k, start, stop)
        assert bounds[is_high] == pytest.approx(0.3)
