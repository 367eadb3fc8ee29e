"""Rankings of a user's items, reduced to what every metric here depends on: the negatives above each positive.

`above` is int64 [..., n+], ascending: above[i] negatives stand above the positive number i (0 = the best one), which is
therefore the item of zero-based rank above[i] + i. A window (start, stop] holds the negatives of 1-based ranks
start < r <= stop: AUC is (0, n-], OPAUC(M / n-) is (0, M], WPAUC of Theorem 3.4 is (K - n+, K].
"""

from __future__ import annotations

from itertools import combinations

import numpy as np


def above_of(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """From scores [..., n+] and [..., n-]; a tie between the two counts as the negative above. int64 [..., n+]."""
    beaten = negatives[..., None, :] >= positives[..., :, None]  # [..., n+, n-]
    return np.sort(beaten.sum(-1), axis=-1)


def every_ranking(num_positives: int, num_negatives: int) -> np.ndarray:
    """`above` of every ranking that there is: [(n+ + n-) choose n+, n+]."""
    places = np.array(list(combinations(range(num_positives + num_negatives), num_positives)), dtype=np.int64)
    return places - np.arange(num_positives)


def recalled(above: np.ndarray, k: int) -> np.ndarray:
    """Positives among the first K: int64 [...], n+ Recall@K."""
    return (above + np.arange(above.shape[-1]) < k).sum(-1)


def wins(above: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Won pairs against the window (start, stop]: int64 [...], n+ (stop - start) times the partial AUC."""
    return np.clip(stop - np.maximum(above, start), 0, None).sum(-1)


def recall_range(num_positives: int, k: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """The fewest and the most positives among the first K over all rankings with as many won pairs of a window.

    Needs K <= n-. Two int64 arrays [n+ (stop - start) + 1], indexed by the won pairs T.

    With j of the positives among the first K, these have at most K - j negatives above them and the others at least so
    many. One with exactly K - j wins b = max(0, stop - max(K - j, start)) pairs, one with none above stop - start, one
    with all above none, and every number between occurs. So j is possible if and only if

        j b <= T <= j (stop - start) + (n+ - j) b

    For the window (K - n+, K] this reads j^2 <= T and (n+ - j)^2 <= n+^2 - T, that is n+ (1 - sqrt(1 - w)) <= j <=
    n+ sqrt(w) with w = T / n+^2: Theorem 3.4, whose bounds are therefore reached, both, at every w.
    """
    length = stop - start
    total = np.arange(num_positives * length + 1)
    low = np.full(len(total), num_positives)
    high = np.zeros(len(total), dtype=np.int64)
    for j in range(min(num_positives, k) + 1):
        at_border = max(0, stop - max(k - j, start))
        possible = (total >= j * at_border) & (total <= j * length + (num_positives - j) * at_border)
        low = np.where(possible, np.minimum(low, j), low)
        high = np.where(possible, np.maximum(high, j), high)
    return low, high
