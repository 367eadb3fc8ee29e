"""Correlations over simulated rankings: the identity of one target, the order of the metrics, the degenerate cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.theory import correlation
from experiments.theory.correlation import KINDS, Options, correlate, simulated, windows_of

from .small_options import CORRELATION as SMALL


def test_with_one_target_wpauc_goes_with_recall_exactly_and_opauc_and_auc_do_not() -> None:
    values, _ = correlation.run(SMALL, 0)
    for level in ("users", "recommenders"):
        for kind in KINDS:
            assert values[f"{kind} of wpauc with recall@5, {level}"] == pytest.approx(1.0)
        assert values[f"pearson of opauc(K / n-) with recall@5, {level}"] < 0.999
        assert values[f"pearson of auc with recall@5, {level}"] < 0.95
    # The window of another K than its own does not: the identity is no accident of the simulation.
    assert [values[f"best window's end for recall@{k}"] for k in (1, 3, 5)] == [1.0, 3.0, 5.0]


def test_with_several_targets_the_theorems_window_goes_best_with_recall() -> None:
    values, series = correlation.run({**SMALL, "positives": 3}, 0)
    users = {metric: values[f"pearson of {metric} with recall@5, users"] for metric in windows_of(Options(), 5)}
    assert max(users, key=lambda metric: users[metric]) == "wpauc"
    assert users["wpauc"] < 1.0
    assert series["ends"] == [float(end) for end in range(3, 11)]


def test_the_windows_are_those_of_the_metrics() -> None:
    options = Options(positives=3, negatives=200, beta=0.05)
    assert windows_of(options, 5) == {
        "auc": (0, 200), "opauc(beta)": (0, 10), "opauc(K / n-)": (0, 5), "wpauc": (2, 5),
    }  # fmt: skip
    assert windows_of(options, 1)["wpauc"] == (0, 1)  # K < n+: what of the window lies in the ranking


def test_a_higher_quality_puts_targets_higher() -> None:
    above = simulated(Options(negatives=100, users=200, qualities=(0.5, 2.0)), np.random.default_rng(0))
    assert above.shape == (12, 200, 1)
    means = above.mean((1, 2)).reshape(6, 2)  # [shapes, qualities]
    assert (means[:, 1] < means[:, 0]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_has_no_correlation(kind: str) -> None:
    assert math.isnan(correlate(kind, np.zeros(4), np.arange(4.0)))
