"""How AUC, OPAUC and WPAUC go with Recall@K over simulated rankings: Pearson, Spearman and Kendall correlations.

A recommender is a distribution of its users' targets over the scores, against standard normal negatives; six shapes,
each at several qualities:

    shifted      N(q, 1)                                        the textbook case
    head         N(q + 2, 1) for a third, N(q - 1, 1)           a few users served very well
    heavy tail   Student t, 2 degrees of freedom, + q           targets far up and far down
    spread       N(q, 2^2)                                      the same mean, all over the list
    near miss    N(q + 1.5, 0.3^2)                              all targets in one stretch of ranks
    by user      N(q + u, 1), u ~ N(0, 1.5^2) of the user       users of different difficulty

Two questions. "users": over all users of all recommenders, does the user's metric tell the user's Recall@K? By that a
loss can be judged, which is a sum over users. "recommenders": over the recommenders, does the mean metric tell the mean
Recall@K? That is what choosing a model by the metric means.

The outcome rests on the simulation: which shapes and qualities there are decides how high the AUC scores. What does not
rest on it is n+ = 1, where WPAUC((K - 1) / n-, 1 / n-) is Recall@K (Lemma 3.5): 1 is an identity there, not a finding.
For K < n+ the theorem's window is not defined and its part within the ranking, (0, K], is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau, pearsonr, spearmanr

from .options import read, require
from .rankings import above_of, recalled, wins

Result = tuple[dict[str, float], dict[str, list[float]]]


@dataclass(frozen=True)
class Options:
    """Size of the simulation."""

    positives: int = 1
    """n+, targets a user."""
    negatives: int = 500
    users: int = 400
    """Of each recommender."""
    qualities: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """q of the shapes: about how many deviations a target stands above a negative."""
    ks: tuple[int, ...] = (1, 3, 5, 10)
    beta: float = 0.05
    """Of the OPAUC whose window does not depend on K."""

    def __post_init__(self) -> None:
        most = max((*self.ks, self.positives))
        require(self.negatives >= most, "negatives", f"at least n+ and the largest K, {most}", self.negatives)
        require(self.positives >= 1, "positives", "at least 1", self.positives)
        require(min(self.ks) >= 1, "ks", "numbers of at least 1", self.ks)
        require(self.users >= 2, "users", "at least 2", self.users)
        require(0.0 < self.beta <= 1.0, "beta", "a false-positive rate in (0, 1]", self.beta)


def run(options: dict[str, Any], seed: int) -> Result:
    """Values: "<kind> of <metric> with recall@K, <level>" and, over windows of n+ ranks, the last rank of the one whose
    partial AUC goes best with Recall@K (the fewest ranks on a tie): "best window's end for recall@K".

    Series: "k", and for each metric, kind and level the correlations by K: "<metric>, <kind>, <level>"; "ends" and
    "window, recall@K": Pearson correlations over the users by the window's last rank.
    """
    chosen = read(Options, options)
    above = simulated(chosen, np.random.default_rng(seed))  # [recommenders, users, n+]
    values: dict[str, float] = {}
    series: dict[str, list[float]] = {"k": [float(k) for k in chosen.ks]}
    for k in chosen.ks:
        recall = recalled(above, k) / chosen.positives
        for metric, (start, stop) in windows_of(chosen, k).items():
            found = wins(above, start, stop) / (chosen.positives * (stop - start))
            for level, pair in (("users", (found, recall)), ("recommenders", (found.mean(1), recall.mean(1)))):
                for kind in KINDS:
                    value = correlate(kind, pair[0].ravel(), pair[1].ravel())
                    values[f"{kind} of {metric} with recall@{k}, {level}"] = value
                    series.setdefault(f"{metric}, {kind}, {level}", []).append(value)
    ends = range(chosen.positives, min(chosen.negatives, 2 * max(chosen.ks)) + 1)
    series["ends"] = [float(end) for end in ends]
    for k in chosen.ks:
        recall = recalled(above, k)
        by_end = [
            correlate("pearson", wins(above, end - chosen.positives, end).ravel(), recall.ravel()) for end in ends
        ]
        series[f"window, recall@{k}"] = by_end
        values[f"best window's end for recall@{k}"] = float(ends[int(np.argmax(by_end))])
    return values, series


def windows_of(options: Options, k: int) -> dict[str, tuple[int, int]]:
    """The metrics that are compared at K: name -> window (start, stop] of the negatives' ranks."""
    return {
        "auc": (0, options.negatives),
        "opauc(beta)": (0, math.ceil(round(options.beta * options.negatives, 9))),
        "opauc(K / n-)": (0, k),
        "wpauc": (max(0, k - options.positives), k),
    }


KINDS: dict[str, Callable[..., Any]] = {"pearson": pearsonr, "spearman": spearmanr, "kendall": kendalltau}


def correlate(kind: str, first: np.ndarray, second: np.ndarray) -> float:
    """One of KINDS (Kendall's is tau-b); NaN where one of the two is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(KINDS[kind](first, second).statistic)


def simulated(options: Options, random: np.random.Generator) -> np.ndarray:
    """Negatives above each target: int64 [shapes x qualities, users, n+]."""
    shape = (options.users, options.positives)

    def head(q: float) -> np.ndarray:
        return random.normal(size=shape) + np.where(random.random(shape) < 1 / 3, q + 2.0, q - 1.0)

    shapes: tuple[Callable[[float], np.ndarray], ...] = (
        lambda q: random.normal(q, 1.0, shape),
        head,
        lambda q: random.standard_t(2.0, shape) + q,
        lambda q: random.normal(q, 2.0, shape),
        lambda q: random.normal(q + 1.5, 0.3, shape),
        lambda q: random.normal(q, 1.0, shape) + random.normal(0.0, 1.5, (options.users, 1)),
    )
    return np.stack(
        [
            above_of(draw(quality), random.normal(size=(options.users, options.negatives)))
            for draw in shapes
            for quality in options.qualities
        ]
    )
