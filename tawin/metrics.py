"""Ranking metrics: AUC and its partial and windowed forms over scores, and Recall, NDCG, MRR over ranks.

Two families. The AUC family takes all scores of one user: `pos` those of the relevant items, `neg` those of the others.
The rank family takes one number per user, the zero-based rank of the one held-out target, and averages over the users.
This module knows nothing of models, catalogues or beams: whoever calls it has ranked the items.

Source: arXiv 2604.22504, whose notation is kept: n+ = len(pos), n- = len(neg), f the score. All arithmetic is fp64 or
exact integers; a count such as ceil(alpha n-) is `ceil(round(alpha * n, 9))`, since the product carries rounding dust.

Ties. A pair counts as won only if f(i+) > f(i-), strictly. So a tie is a loss, exactly as if every positive were ranked
below the negatives that share its score; ties among negatives or among positives change nothing. For Recall@K counted
in that (pessimistic) order Theorem 3.4 and Lemma 3.5 hold with any ties. In any other order of the tied items Recall@K
can only be higher: the lower bound still holds, the upper one and the equality of the lemma may not.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch

from .config import KS

Array = torch.Tensor | np.ndarray | Sequence[float]


def auc(pos: Array, neg: Array) -> float:
    """Pr[f(i+) > f(i-)] over all pairs of one user's positives and negatives.

    Args:
        pos, neg: scores of the positives [n+] and of the negatives [n-], any real dtype; +-inf is a score, NaN is not.

    Raises:
        ValueError, TypeError: empty, not 1-D, NaN or not numbers.

    With ties between the two it is lower than the trapezoidal area (scikit-learn's `roc_auc_score`), which counts a tie
    as half a win: that area is (1 + auc(pos, neg) - auc(neg, pos)) / 2.
    """
    return _share_of_wins(_scores("pos", pos), _scores("neg", neg))


def opauc(pos: Array, neg: Array, beta: float) -> float:
    """One-way partial AUC: the AUC against the ceil(beta n-) highest negatives, that is WPAUC(0, beta).

    Args:
        pos, neg: as in `auc`.
        beta: the highest false-positive rate that counts, in (0, 1]; 1 gives the AUC.
    """
    beta = _number("beta", beta)
    if not 0.0 < beta <= 1.0:
        raise ValueError(f"beta: expected a false-positive rate in (0, 1], got {beta!r}")
    return wpauc(pos, neg, 0.0, beta)


def wpauc(pos: Array, neg: Array, alpha: float, d: float) -> float:
    """Windowed partial AUC: the AUC against those negatives alone that stand in a window of their ranking.

    It holds the 1-based ranks r by descending score with ceil(alpha n-) < r <= ceil((alpha + d) n-). WPAUC(0, 1) is the
    AUC. With alpha = (K - n+) / n- and d = n+ / n-, for n+ <= K <= n-, it is the window that decides Recall@K
    (Theorem 3.4, see `recall_bounds`).

    Args:
        pos, neg: as in `auc`.
        alpha: false-positive rate at which the window begins, in [0, 1).
        d: width of the window, above 0, alpha + d <= 1.

    Raises:
        ValueError, TypeError: as in `auc`; alpha or d out of range; a window that holds no negative.
    """
    positives, negatives = _scores("pos", pos), _scores("neg", neg)
    alpha, d = _number("alpha", alpha), _number("d", d)
    if not 0.0 <= alpha < 1.0:
        raise ValueError(f"alpha: expected a false-positive rate in [0, 1), got {alpha!r}")
    if not 0.0 < d <= 1.0:
        raise ValueError(f"d: expected a width in (0, 1], got {d!r}")
    total = len(negatives)
    start, stop = _ceil(alpha * total), _ceil((alpha + d) * total)
    if stop > total:
        raise ValueError(f"d: expected alpha + d <= 1, got alpha={alpha!r} and d={d!r}")
    if start == stop:
        raise ValueError(
            f"alpha, d: expected a window that holds at least one of the {total} negatives, got alpha={alpha!r} and "
            f"d={d!r}, the ranks {start} < r <= {stop}; take d >= 1/{total}"
        )
    descending = np.sort(negatives)[::-1]
    return _share_of_wins(positives, descending[start:stop])


def recall_bounds(wpauc: float, num_positives: int) -> tuple[float, float]:
    """The lowest and the highest Recall@K that a user's WPAUC allows (Theorem 3.4).

    Args:
        wpauc: w = WPAUC((K - n+) / n-, n+ / n-) of one user, in [0, 1], n+ <= K <= n-. Not a mean over users: average
            the bounds instead.
        num_positives: n+, at least 1.

    Returns:
        (ceil(n+ (1 - sqrt(1 - w))) / n+, floor(n+ sqrt(w)) / n+). With n+ = 1, w is 0 or 1 and so are both (Lemma 3.5).
    """
    share = _number("wpauc", wpauc)
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"wpauc: expected a share in [0, 1], got {share!r}")
    count = _at_least_one("num_positives", num_positives)
    low = _ceil(count * (1.0 - math.sqrt(1.0 - share)))
    high = math.floor(round(count * math.sqrt(share), 9))
    return low / count, high / count


def recall_at_k(ranks: Array, k: int) -> float:
    """Share of the users whose target is among the first k: mean of 1[0 <= rank < k].

    Args:
        ranks: zero-based rank of each user's target, integers [users]; -1 = not found.
        k: length of the recommended list, at least 1, at most the length of the list in which the ranks were found.
    """
    ranks, k = _ranks(ranks), _at_least_one("k", k)
    return float(np.mean((ranks >= 0) & (ranks < k)))


def ndcg_at_k(ranks: Array, k: int) -> float:
    """Mean of 1 / log2(rank + 2) over the users, 0 where the target is not among the first k.

    One target per user: the ideal DCG is 1. Arguments as in `recall_at_k`.
    """
    ranks, k = _ranks(ranks), _at_least_one("k", k)
    found = (ranks >= 0) & (ranks < k)
    return float(np.mean(np.where(found, 1.0 / np.log2(np.maximum(ranks, 0) + 2.0), 0.0)))


def mrr(ranks: Array) -> float:
    """Mean of 1 / (rank + 1) over the users, 0 where the target was not found. `ranks` as in `recall_at_k`."""
    ranks = _ranks(ranks)
    return float(np.mean(np.where(ranks >= 0, 1.0 / (np.maximum(ranks, 0) + 1.0), 0.0)))


def wpauc_at_k(ranks: Array, k: int) -> float:
    """Mean over users with one target each of WPAUC((K - 1) / n-, 1 / n-), from the target's rank.

    With n+ = 1 the window is the single K-th negative, and WPAUC is 1 if the target stands above it, else 0. All items
    above the target are negatives, `rank` of them: the K-th negative is above the target if and only if rank >= K. So
    this equals Recall@K user by user (Lemma 3.5) and is no second opinion. With several targets per user the two
    differ, and then `wpauc` is the function to call. Arguments as in `recall_at_k`.
    """
    ranks, k = _ranks(ranks), _at_least_one("k", k)
    # A target that was not found (-1) stands below the whole list, hence below the K-th negative.
    negatives_above = np.where(ranks >= 0, ranks, k)
    kth_negative_is_above = negatives_above >= k
    return float(1.0 - np.mean(kth_negative_is_above))


def ranking_metrics(ranks: Array) -> dict[str, float]:
    """What an evaluation reports: "recall@K", "ndcg@K", "wpauc@K" for K = 1, 3, 5, 10. `ranks` as in `recall_at_k`."""
    families = {"recall": recall_at_k, "ndcg": ndcg_at_k, "wpauc": wpauc_at_k}
    return {f"{name}@{k}": metric(ranks, k) for name, metric in families.items() for k in KS}


def _share_of_wins(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Share of the pairs with positive > negative, from an exact count of them; O((n+ + n-) log n+)."""
    not_above = np.searchsorted(np.sort(positives), negatives, side="right")  # [n-]: positives <= each negative
    pairs = len(positives) * len(negatives)
    return (pairs - int(not_above.sum())) / pairs


def _ceil(value: float) -> int:
    return math.ceil(round(value, 9))


def _array(name: str, values: Array, expected: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected {expected}, got {type(values).__name__}: {error}") from error
    if array.ndim != 1:
        raise ValueError(f"{name}: expected {expected}, got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name}: expected {expected}, at least one, got none")
    return array


def _scores(name: str, values: Array) -> np.ndarray:
    expected = "a 1-D array of the scores of one user"
    array = _array(name, values, expected)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name}: expected {expected}, got dtype {array.dtype}")
    array = array.astype(np.float64)
    if np.isnan(array).any():
        raise ValueError(f"{name}: expected {expected}, got NaN at index {int(np.isnan(array).argmax())}")
    return array


def _ranks(values: Array) -> np.ndarray:
    expected = "a 1-D integer array of zero-based ranks, -1 where the target was not found"
    array = _array("ranks", values, expected)
    if array.dtype.kind not in "iu":
        raise TypeError(f"ranks: expected {expected}, got dtype {array.dtype}")
    array = array.astype(np.int64)
    if array.min() < -1:
        raise ValueError(f"ranks: expected {expected}, got {int(array.min())} at index {int(array.argmin())}")
    return array


def _number(name: str, value: float) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)


def _at_least_one(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from error
    if isinstance(value, bool) or number < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    return number
