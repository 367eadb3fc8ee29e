"""Theorem 3.4 and Lemma 3.5: how closely WPAUC confines Recall@K, and how closely AUC and OPAUC do.

Checked with `tawin.metrics` on every ranking of small catalogues (adversarial: nothing can be worse) and on random
rankings of larger ones: violations of ceil(n+ (1 - sqrt(1 - w))) <= n+ Recall@K <= floor(n+ sqrt(w)), which must be 0,
and for n+ = 1 differences between WPAUC and Recall@K, which must be 0 too.

How tight: for any window of the negatives' ranking, `rankings.recall_range` gives the smallest and the largest Recall@K
among all rankings with the same partial AUC: no better bound exists. Its width (largest - smallest) is averaged over
rankings for AUC, OPAUC(K / n-), the OPAUC and the window that turn out best, and the theorem's WPAUC.

Assumptions, and what breaks without them:
* n+ <= K <= n-. For K < n+ alpha is negative and WPAUC(alpha, d) is not defined.
* ties between a positive and a negative count as the negative above. Broken the other way the upper bound fails; the
  share of tied rankings where it does is measured.
* n+ >= 2 for "tighter" to mean anything about one user. For n+ = 1 AUC and OPAUC(K / n-) decide a user's Recall@K as
  exactly as WPAUC does: the AUC is the rank, OPAUC is above 0 if and only if the target is found. What they do not do
  is average: mean WPAUC over users is mean Recall@K, but a mean OPAUC of m leaves it anywhere in m .. min(1, K m). The
  width of that interval is measured ("width of the mean").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tawin.metrics import recall_bounds, wpauc

from .options import read, require
from .rankings import above_of, every_ranking, recall_range, recalled, wins

Result = tuple[dict[str, float], dict[str, list[float]]]


@dataclass(frozen=True)
class Options:
    """Sizes of the rankings."""

    exhaustive_positives: tuple[int, ...] = (1, 2, 3, 4)
    exhaustive_negatives: int = 9
    """Catalogues of which every ranking is checked, at every K from n+ to n-."""
    positives: tuple[int, ...] = (1, 2, 3, 5, 10)
    negatives: int = 200
    ks: tuple[int, ...] = (1, 2, 3, 5, 10, 20, 50)
    """Those below n+ are left out."""
    rankings: int = 400
    """Random ones for each n+, of users for whom the recommender is anything from useless to perfect."""
    levels: int = 20
    """Distinct scores of the tied rankings."""

    def __post_init__(self) -> None:
        most = max((*self.positives, *self.ks))
        require(self.negatives >= most, "negatives", f"at least the largest n+ and K, {most}", self.negatives)
        most = max(self.exhaustive_positives)
        require(
            self.exhaustive_negatives >= most, "exhaustive_negatives", f"at least {most}", self.exhaustive_negatives
        )
        for name in ("positives", "exhaustive_positives", "ks"):
            require(min(getattr(self, name)) >= 1, name, "numbers of at least 1", getattr(self, name))
        require(self.rankings >= 1, "rankings", "at least 1", self.rankings)


def run(options: dict[str, Any], seed: int) -> Result:
    """Values: counts ("checked", "violations", "differences"), shares, mean widths by n+ and K.

    Series: "k", then for each n+ "width auc", "width opauc", "width best opauc", "width wpauc", "width best window"
    with ", n+ = N" behind, NaN where K < n+; for n+ = 1 "width of the mean auc", "... opauc" and "... wpauc".
    """
    chosen = read(Options, options)
    random = np.random.default_rng(seed)
    values = _exhaustive(chosen) | _ties(chosen, random)
    series: dict[str, list[float]] = {"k": [float(k) for k in chosen.ks]}
    checked = violations = differences = 0
    for count in chosen.positives:
        above = random_rankings(random, chosen.rankings, count, chosen.negatives)
        for k in chosen.ks:
            known = k >= count
            if known:
                broken, unequal = _broken(above, chosen.negatives, k)
                checked, violations, differences = checked + len(above), violations + broken, differences + unequal
            widths = _widths(above, chosen.negatives, k) if known else dict.fromkeys(_WIDTHS, math.nan)
            for name, width in widths.items():
                series.setdefault(f"{name}, n+ = {count}", []).append(width)
                if known:
                    values[f"{name}, n+ = {count}, K = {k}"] = width
            if count == 1:
                for name, start, stop in (("auc", 0, chosen.negatives), ("opauc", 0, k), ("wpauc", k - 1, k)):
                    low, high = mean_range(float(wins(above, start, stop).mean()) / (stop - start), k, start, stop)
                    series.setdefault(f"width of the mean {name}", []).append(high - low)
                    values[f"width of the mean {name}, K = {k}"] = high - low
    values |= {
        "random rankings checked": float(checked),
        "violations, random": float(violations),
        "differences for n+ = 1, random": float(differences),
    }
    return values, series


def random_rankings(random: np.random.Generator, rankings: int, num_positives: int, num_negatives: int) -> np.ndarray:
    """`above` of rankings by normal scores; each user's positives are shifted by a number from 0 to 5: [R, n+]."""
    shift = random.uniform(0.0, 5.0, (rankings, 1))
    positives = random.normal(size=(rankings, num_positives)) + shift
    return above_of(positives, random.normal(size=(rankings, num_negatives)))


def is_within(above: np.ndarray, num_negatives: int, k: int, found: int | None = None) -> tuple[bool, bool, float]:
    """Whether Recall@K of one ranking [n+] is (at least the lower, at most the upper) bound, and WPAUC.

    `found` replaces the ranking's own count of positives among the first K.
    """
    count = len(above)
    # Scores with that ranking: negative r (zero-based) has -r, a positive with a above it stands just before number a.
    weight = wpauc(0.5 - above, -np.arange(num_negatives), (k - count) / num_negatives, count / num_negatives)
    low, high = recall_bounds(weight, count)
    recall = (int(recalled(above, k)) if found is None else found) / count
    return low <= recall, recall <= high, weight


def mean_range(mean: float, k: int, start: int, stop: int) -> tuple[float, float]:
    """The lowest and the highest mean Recall@K of many users with one target each, from their mean partial AUC.

    One found has a partial AUC from b to 1, one not found from 0 to c, b and c those of a target with K - 1 and K
    negatives above it. A share p found therefore gives every mean from p b to p + (1 - p) c, with many users.
    """
    found_at_last, missed_at_first = (max(0, stop - max(a, start)) / (stop - start) for a in (k - 1, k))
    low = 0.0 if missed_at_first == 1.0 else max(0.0, (mean - missed_at_first) / (1.0 - missed_at_first))
    high = min(1.0, mean / found_at_last) if found_at_last > 0.0 else 1.0
    return low, high


_WIDTHS = ("width auc", "width opauc", "width best opauc", "width wpauc", "width best window")


def _broken(above: np.ndarray, num_negatives: int, k: int) -> tuple[int, int]:
    """Rankings of [R, n+] that break the theorem at K, and those that break the lemma."""
    broken = unequal = 0
    for ranking in above:
        enough, not_more, weight = is_within(ranking, num_negatives, k)
        broken += not (enough and not_more)
        unequal += len(ranking) == 1 and weight != recalled(ranking, k)
    return broken, unequal


def _exhaustive(options: Options) -> dict[str, float]:
    checked = violations = differences = reached = possible = 0
    for count in options.exhaustive_positives:
        above = every_ranking(count, options.exhaustive_negatives)
        for k in range(count, options.exhaustive_negatives + 1):
            broken, unequal = _broken(above, options.exhaustive_negatives, k)
            checked, violations, differences = checked + len(above), violations + broken, differences + unequal
            window, found = wins(above, k - count, k), recalled(above, k)
            for total in np.unique(window):
                low, high = recall_bounds(int(total) / count**2, count)
                seen = found[window == total] / count
                reached += int(low == seen.min()) + int(high == seen.max())
                possible += 2
    return {
        "rankings checked, exhaustive": float(checked),
        "violations, exhaustive": float(violations),
        "differences for n+ = 1, exhaustive": float(differences),
        "share of bounds that are reached": reached / possible,
    }


def _ties(options: Options, random: np.random.Generator) -> dict[str, float]:
    """Rankings with ties: the theorem with ties counted as its WPAUC counts them, and counted for the positives."""
    checked = against = upper = lower = 0
    for count in options.positives:
        for _ in range(options.rankings // 4):
            positives = random.integers(0, options.levels + 4, count)
            negatives = random.integers(0, options.levels, options.negatives)
            k = int(random.integers(count, options.negatives + 1))
            above = above_of(positives, negatives)
            enough, not_more, _ = is_within(above, options.negatives, k)
            against += not (enough and not_more)
            above_if_for = np.sort((negatives[None, :] > positives[:, None]).sum(1))
            enough, not_more, _ = is_within(above, options.negatives, k, int(recalled(above_if_for, k)))
            lower += not enough
            upper += not not_more
            checked += 1
    return {
        "violations, ties counted as losses": float(against),
        "share beyond the upper bound, ties counted as wins": upper / checked if checked else 0.0,
        "share beyond the lower bound, ties counted as wins": lower / checked if checked else 0.0,
    }


def _widths(above: np.ndarray, num_negatives: int, k: int) -> dict[str, float]:
    """Mean over the rankings [R, n+] of (largest - smallest) Recall@K, for each of _WIDTHS."""
    count = above.shape[1]

    def width(start: int, stop: int) -> float:
        low, high = recall_range(count, k, start, stop)
        total = wins(above, start, stop)
        return float((high - low)[total].mean() / count)

    # Ranks further than n+ from the theorem's window only mix in pairs that say nothing of K.
    first, last = max(0, k - 2 * count), min(num_negatives, k + count)
    opauc = [width(0, stop) for stop in range(max(1, first), last + 1)]
    windows = [width(start, stop) for start in range(first, last) for stop in range(start + 1, last + 1)]
    found = (width(0, num_negatives), width(0, k), min(opauc), width(k - count, k), min(windows))
    return dict(zip(_WIDTHS, found, strict=True))
