"""Metrics against brute force, scikit-learn, hand-computed values and the theorems of arXiv 2604.22504."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tawin import metrics
from tawin.config import KS

# Values compared with a tolerance are ratios of exact integer counts, each rounded once or twice to fp64 (2e-16): 1e-12
# leaves room for scikit-learn's cumulative sums over some hundred terms.
TOLERANCE = 1e-12

# A handful of distinct values, so that ties are common, with both zeros and the infinities among them.
tied_scores = st.sampled_from([-math.inf, -1.5, -0.0, 0.0, 0.25, 1.0, 2.0, math.inf])
score_lists = st.lists(tied_scores | st.floats(-1e6, 1e6), min_size=1, max_size=30)


def pessimistic_recall(pos, neg, k):
    """Recall@K where every positive stands below the negatives of its score, from its rank in the whole list."""
    ranked = sorted([(-score, is_positive) for is_positive, scores in ((0, neg), (1, pos)) for score in scores])
    return sum(is_positive for _, is_positive in ranked[:k]) / len(pos)


def optimistic_recall(pos, neg, k):
    """Recall@K where every positive stands above the negatives of its score."""
    ranked = sorted([(-score, is_negative) for is_negative, scores in ((0, pos), (1, neg)) for score in scores])
    return sum(1 - is_negative for _, is_negative in ranked[:k]) / len(pos)


def theorem_window(pos, neg, k):
    return metrics.wpauc(pos, neg, (k - len(pos)) / len(neg), len(pos) / len(neg))


def random_user(rng, distinct):
    """Scores of one user and a K that the theorem covers; `distinct` = 0: no ties, else that many different scores."""
    num_positives = int(rng.integers(1, 12))
    num_negatives = int(rng.integers(num_positives, 60))
    k = int(rng.integers(num_positives, num_negatives + 1))
    total = num_positives + num_negatives
    scores = rng.permutation(total) if distinct == 0 else rng.integers(0, distinct, total)
    # Positives get a head start of random size, so that every recall from 0 to 1 occurs.
    scores = scores.astype(np.float64)
    pos = scores[:num_positives] + (int(rng.integers(0, total)) if distinct == 0 else int(rng.integers(0, 3)))
    if distinct == 0:
        pos = pos + 0.5
    return pos, scores[num_positives:], k


@pytest.mark.parametrize("distinct", [0, 4, 12], ids=["no ties", "many ties", "some ties"])
def test_recall_lies_within_the_bounds_of_theorem_3_4_on_random_draws(distinct):
    rng = np.random.default_rng(distinct)
    recalls = set()
    for _ in range(5000):
        pos, neg, k = random_user(rng, distinct)
        low, high = metrics.recall_bounds(theorem_window(pos, neg, k), len(pos))
        recall = pessimistic_recall(pos, neg, k)
        assert low <= recall <= high, (pos, neg, k)  # both sides are counts / n+, divided alike: no tolerance needed
        recalls.add(recall)
    assert {0.0, 1.0} < recalls, "the draws do not cover the range"


def test_both_bounds_of_theorem_3_4_are_reached():
    rng = np.random.default_rng(1)
    low_is_reached = high_is_reached = False
    for _ in range(2000):
        pos, neg, k = random_user(rng, 0)
        low, high = metrics.recall_bounds(theorem_window(pos, neg, k), len(pos))
        recall = pessimistic_recall(pos, neg, k)
        low_is_reached |= low == recall < high
        high_is_reached |= low < recall == high
    assert low_is_reached and high_is_reached


def test_with_ties_broken_for_the_positives_the_lower_bound_still_holds():
    rng = np.random.default_rng(2)
    upper_bound_fails = 0
    for _ in range(3000):
        pos, neg, k = random_user(rng, 4)
        low, high = metrics.recall_bounds(theorem_window(pos, neg, k), len(pos))
        recall = optimistic_recall(pos, neg, k)
        assert low <= recall, (pos, neg, k)
        upper_bound_fails += recall > high
    assert upper_bound_fails > 0, "the docstring says that the upper bound may fail here"


@pytest.mark.parametrize("distinct", [0, 5], ids=["no ties", "ties"])
def test_one_positive_makes_wpauc_equal_recall_as_lemma_3_5_says(distinct):
    rng = np.random.default_rng(10 + distinct)
    for _ in range(5000):
        num_negatives = int(rng.integers(1, 60))
        k = int(rng.integers(1, num_negatives + 1))
        scores = rng.permutation(num_negatives + 1) if distinct == 0 else rng.integers(0, distinct, num_negatives + 1)
        pos, neg = scores[:1], scores[1:]
        window = theorem_window(pos, neg, k)
        assert window == pessimistic_recall(pos, neg, k)
        assert metrics.recall_bounds(window, 1) == (window, window)
        rank = int(np.sum(neg >= pos[0]))  # pessimistic: below the negatives of the same score
        assert window == metrics.wpauc_at_k([rank], k) == metrics.recall_at_k([rank], k)


@settings(deadline=None)
@given(
    pos=st.lists(st.floats(-10, 10), min_size=1, max_size=30), neg=st.lists(st.floats(-10, 10), min_size=1, max_size=30)
)
def test_auc_equals_sklearn_where_nothing_ties(pos, neg):
    assume(not set(pos) & set(neg))
    labels = [1] * len(pos) + [0] * len(neg)
    assert metrics.auc(pos, neg) == pytest.approx(roc_auc_score(labels, pos + neg), abs=TOLERANCE)


@settings(deadline=None)
@given(
    pos=st.lists(st.integers(0, 4), min_size=1, max_size=30), neg=st.lists(st.integers(0, 4), min_size=1, max_size=30)
)
def test_auc_counts_a_tie_as_a_loss_where_sklearn_counts_half_a_win(pos, neg):
    labels = [1] * len(pos) + [0] * len(neg)
    trapezoidal = (1 + metrics.auc(pos, neg) - metrics.auc(neg, pos)) / 2
    assert trapezoidal == pytest.approx(roc_auc_score(labels, pos + neg), abs=TOLERANCE)
    tied_share = sum(p == n for p in pos for n in neg) / (len(pos) * len(neg))
    assert metrics.auc(pos, neg) + tied_share / 2 == pytest.approx(trapezoidal, abs=TOLERANCE)


@settings(deadline=None)
@given(pos=score_lists, neg=score_lists, data=st.data())
def test_opauc_equals_a_brute_force_over_pairs(pos, neg, data):
    hardest = data.draw(st.integers(1, len(neg)), label="negatives that count")
    # Any beta in ((hardest - 1) / n-, hardest / n-] selects them; both the end, with its rounding dust, and the inside.
    beta = (hardest - data.draw(st.sampled_from([0.0, 0.25, 0.999]))) / len(neg)
    top = sorted(neg, reverse=True)[:hardest]
    expected = sum(p > n for p in pos for n in top) / (len(pos) * hardest)
    assert metrics.opauc(pos, neg, beta) == expected == metrics.wpauc(pos, neg, 0.0, beta)


@settings(deadline=None)
@given(pos=score_lists, neg=score_lists, data=st.data())
def test_wpauc_equals_a_brute_force_over_the_pairs_of_its_window(pos, neg, data):
    start = data.draw(st.integers(0, len(neg) - 1), label="start")
    stop = data.draw(st.integers(start + 1, len(neg)), label="stop")
    window = sorted(neg, reverse=True)[start:stop]
    expected = sum(p > n for p in pos for n in window) / (len(pos) * len(window))
    assert metrics.wpauc(pos, neg, start / len(neg), (stop - start) / len(neg)) == expected


@settings(deadline=None)
@given(pos=score_lists, neg=score_lists)
def test_opauc_of_one_and_wpauc_of_the_whole_range_are_the_auc(pos, neg):
    area = metrics.auc(pos, neg)
    assert metrics.opauc(pos, neg, 1) == area == metrics.wpauc(pos, neg, 0, 1)
    assert 0.0 <= area <= 1.0


@settings(deadline=None)
@given(pos=score_lists, neg=score_lists, data=st.data())
def test_the_order_of_the_scores_and_of_tied_negatives_changes_nothing(pos, neg, data):
    shuffled_pos, shuffled_neg = data.draw(st.permutations(pos)), data.draw(st.permutations(neg))
    beta = data.draw(st.floats(1 / len(neg), 1.0))
    assert metrics.opauc(pos, neg, beta) == metrics.opauc(shuffled_pos, shuffled_neg, beta)


def test_hand_computed_windows():
    pos, neg = [5.0, 2.5], [1.0, 4.0, 3.0, 2.0]
    assert metrics.auc(pos, neg) == 6 / 8
    assert metrics.opauc(pos, neg, 0.25) == 1 / 2  # against 4.0
    assert metrics.opauc(pos, neg, 0.26) == 2 / 4  # against 4.0 and 3.0
    assert metrics.wpauc(pos, neg, 0.5, 0.25) == 2 / 2  # against 2.0
    assert metrics.wpauc(pos, neg, 0.25, 0.5) == 3 / 4  # against 3.0 and 2.0


@pytest.mark.parametrize(("alpha", "d", "start", "stop"), [(0.1, 0.2, 1, 3), (0.7, 0.1, 7, 8), (0.8, 0.2, 8, 10)])
def test_rounding_dust_does_not_move_a_window(alpha, d, start, stop):
    # (0.1 + 0.2) * 10 = 3.0000000000000004 in fp64: a plain ceil would take a fourth negative.
    neg = list(range(10, 0, -1))
    for rank in range(10):
        outside = metrics.wpauc([neg[rank] + 0.5], neg, alpha, d)
        assert outside == sum(r >= rank for r in range(start, stop)) / (stop - start)


def test_scores_may_be_lists_arrays_or_tensors_of_any_dtype():
    pos, neg = [2, 0, 1], [1, -1, 3, 0]
    expected = metrics.auc(pos, neg)
    assert type(expected) is float
    for convert in (
        lambda x: np.array(x, dtype=np.float16),
        lambda x: np.array(x, dtype=np.int8),
        lambda x: torch.tensor(x, dtype=torch.bfloat16),
        lambda x: torch.tensor(x, dtype=torch.float32, requires_grad=True),
        lambda x: torch.tensor(x),
        lambda x: [torch.tensor(float(value)) for value in x],
        tuple,
    ):
        assert metrics.auc(convert(pos), convert(neg)) == expected


def test_scores_that_only_fp64_tells_apart_are_told_apart():
    assert metrics.auc([1.0 + 1e-15], [1.0]) == 1.0
    assert metrics.auc(torch.tensor([1.0 + 1e-15], dtype=torch.float64), [1.0]) == 1.0


def test_zeros_of_either_sign_tie():
    assert metrics.auc([0.0], [-0.0]) == 0.0 == metrics.auc([-0.0], [0.0])


def test_hand_computed_recall_ndcg_and_mrr():
    ranks = [0, 2, -1, 3, 9]
    assert [metrics.recall_at_k(ranks, k) for k in (1, 3, 4, 9, 10)] == [0.2, 0.4, 0.6, 0.6, 0.8]
    assert metrics.ndcg_at_k(ranks, 1) == pytest.approx(0.2, abs=TOLERANCE)
    assert metrics.ndcg_at_k(ranks, 3) == pytest.approx((1 + 0.5) / 5, abs=TOLERANCE)
    assert metrics.ndcg_at_k(ranks, 10) == pytest.approx(
        (1 + 0.5 + 1 / math.log2(5) + 1 / math.log2(11)) / 5, abs=TOLERANCE
    )
    assert metrics.mrr(ranks) == pytest.approx((1 + 1 / 3 + 1 / 4 + 1 / 10) / 5, abs=TOLERANCE)


def test_users_whose_target_was_not_found_count_as_zero():
    assert metrics.recall_at_k([-1, -1], 10) == metrics.ndcg_at_k([-1, -1], 10) == metrics.mrr([-1, -1]) == 0.0


rank_lists = st.lists(st.integers(-1, 60), min_size=1, max_size=50)


@settings(deadline=None)
@given(ranks=rank_lists)
def test_ranking_metrics_are_named_shares_that_grow_with_k(ranks):
    result = metrics.ranking_metrics(ranks)
    assert list(result) == [f"{family}@{k}" for family in ("recall", "ndcg", "wpauc") for k in KS]
    assert all(type(value) is float and 0.0 <= value <= 1.0 for value in result.values())
    for family in ("recall", "ndcg", "wpauc"):
        values = [result[f"{family}@{k}"] for k in KS]
        assert values == sorted(values)
    for k in KS:
        assert result[f"recall@{k}"] == metrics.recall_at_k(ranks, k)
        assert result[f"ndcg@{k}"] == metrics.ndcg_at_k(ranks, k) <= result[f"recall@{k}"] + TOLERANCE


@settings(deadline=None)
@given(ranks=rank_lists, k=st.integers(1, 60))
def test_wpauc_at_k_from_ranks_equals_wpauc_of_scores_with_those_ranks(ranks, k):
    catalogue = np.arange(100.0, 0.0, -1.0)  # the scores of 100 items, best first
    total = 0.0
    for rank in ranks:
        row = rank if rank >= 0 else 99  # not found: below every list that k asks for
        total += theorem_window(catalogue[row : row + 1], np.delete(catalogue, row), k)
    assert metrics.wpauc_at_k(ranks, k) == pytest.approx(total / len(ranks), abs=TOLERANCE)


def test_ranks_may_be_lists_arrays_or_tensors():
    for ranks in ([0, 4, -1, 2], np.array([0, 4, -1, 2], dtype=np.int32), torch.tensor([0, 4, -1, 2])):
        assert metrics.recall_at_k(ranks, 3) == 0.5
        assert metrics.recall_at_k(ranks, np.int64(3)) == 0.5


@settings(deadline=None)
@given(num_positives=st.integers(1, 500), data=st.data())
def test_recall_bounds_of_a_perfect_square_are_exact(num_positives, data):
    # w = (m / n+)^2 has the exact bound m / n+: sqrt must not leave dust that floor or ceil turns into a step.
    won = data.draw(st.integers(0, num_positives))
    low, high = metrics.recall_bounds(won**2 / num_positives**2, num_positives)
    assert high == won / num_positives
    assert low <= high
    low, _ = metrics.recall_bounds(1 - won**2 / num_positives**2, num_positives)
    assert low == (num_positives - won) / num_positives


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.auc([], [1.0]), ValueError, "pos: .*at least one, got none"),
        (lambda: metrics.auc([1.0], []), ValueError, "neg: .*at least one, got none"),
        (lambda: metrics.auc([1.0, math.nan], [1.0]), ValueError, "pos: .*NaN at index 1"),
        (lambda: metrics.wpauc([1.0], torch.tensor([math.nan]), 0, 1), ValueError, "neg: .*NaN at index 0"),
        (lambda: metrics.auc([[1.0]], [1.0]), ValueError, r"pos: .*1-D.*got shape \(1, 1\)"),
        (lambda: metrics.auc([1.0], 2.0), ValueError, r"neg: .*1-D.*got shape \(\)"),
        (lambda: metrics.auc(["1"], [1.0]), TypeError, "pos: .*got dtype"),
        (lambda: metrics.auc([None], [1.0]), TypeError, "pos: .*got dtype"),
        (lambda: metrics.auc([1.0, [2.0]], [1.0]), TypeError, "pos: .*got list"),
        (lambda: metrics.auc([1j], [1.0]), TypeError, "pos: .*complex"),
        (lambda: metrics.opauc([1.0], [1.0], 0.0), ValueError, r"beta: .*\(0, 1\], got 0.0"),
        (lambda: metrics.opauc([1.0], [1.0], 1.5), ValueError, r"beta: .*\(0, 1\], got 1.5"),
        (lambda: metrics.opauc([1.0], [1.0], math.nan), ValueError, "beta: .*got nan"),
        (lambda: metrics.opauc([1.0], [1.0], "half"), TypeError, "beta: expected a number, got 'half'"),
        (lambda: metrics.opauc([1.0], [1.0], 1e-12), ValueError, "window that holds at least one"),
        (lambda: metrics.wpauc([1.0], [1.0], -0.1, 0.5), ValueError, r"alpha: .*\[0, 1\), got -0.1"),
        (lambda: metrics.wpauc([1.0], [1.0], 1.0, 0.5), ValueError, r"alpha: .*\[0, 1\), got 1.0"),
        (lambda: metrics.wpauc([1.0], [1.0], math.nan, 0.5), ValueError, "alpha: .*got nan"),
        (lambda: metrics.wpauc([1.0], [1.0], 0.0, 0.0), ValueError, r"d: .*\(0, 1\], got 0.0"),
        (lambda: metrics.wpauc([1.0], [1.0], 0.0, math.inf), ValueError, "d: .*got inf"),
        (lambda: metrics.wpauc([1.0], [1.0] * 10, 0.5, 0.6), ValueError, r"d: expected alpha \+ d <= 1"),
        (lambda: metrics.wpauc([1.0], [1.0] * 10, 0.01, 0.02), ValueError, "window that holds at least one of the 10"),
        (lambda: metrics.wpauc([1.0], [1.0], True, 0.5), TypeError, "alpha: expected a number, got True"),
        (lambda: metrics.recall_bounds(1.5, 3), ValueError, r"wpauc: .*\[0, 1\], got 1.5"),
        (lambda: metrics.recall_bounds(math.nan, 3), ValueError, "wpauc: .*got nan"),
        (lambda: metrics.recall_bounds(0.5, 0), ValueError, "num_positives: .*at least 1, got 0"),
        (lambda: metrics.recall_bounds(0.5, 2.0), TypeError, "num_positives: expected an integer, got 2.0"),
        (lambda: metrics.recall_at_k([0], 0), ValueError, "k: .*at least 1, got 0"),
        (lambda: metrics.ndcg_at_k([0], 2.5), TypeError, "k: expected an integer, got 2.5"),
        (lambda: metrics.recall_at_k([0], True), ValueError, "k: .*got True"),
        (lambda: metrics.recall_at_k([0, -2], 1), ValueError, "ranks: .*got -2 at index 1"),
        (lambda: metrics.mrr([]), ValueError, "ranks: .*at least one, got none"),
        (lambda: metrics.mrr([0.5]), TypeError, "ranks: .*integer.*float64"),
        (lambda: metrics.mrr([True]), TypeError, "ranks: .*integer.*bool"),
        (lambda: metrics.ranking_metrics(torch.zeros(2, 2, dtype=torch.long)), ValueError, r"ranks: .*\(2, 2\)"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
