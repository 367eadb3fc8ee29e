"""Means, deviations and paired tests, against scipy and against answers that are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from experiments import statistics
from tawin.metrics import ndcg_at_k, recall_at_k

from .made_records import record


def planted(users, better, worse):
    """Ranks of a baseline that finds nobody's target but that of `worse` users, and of a row that finds `better`."""
    base, row = np.full(users, -1), np.full(users, -1)
    row[:better] = 0
    base[better : better + worse] = 0
    return base, row


@pytest.mark.parametrize(("family", "mean"), [("recall", recall_at_k), ("ndcg", ndcg_at_k)])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_metric_of_each_user_averages_to_the_metric(family, mean, k):
    ranks = np.random.default_rng(0).integers(-1, 12, 500)
    users = statistics.per_user(ranks, f"{family}@{k}")
    assert users.mean() == pytest.approx(mean(ranks, k))
    assert (users > 0).tolist() == ((ranks >= 0) & (ranks < k)).tolist()


def test_the_gain_of_a_user_falls_with_the_rank():
    np.testing.assert_allclose(
        statistics.per_user(np.array([-1, 0, 1, 2, 3]), "ndcg@3"), [0.0, 1.0, 1 / np.log2(3), 0.5, 0.0]
    )


@pytest.mark.parametrize("metric", ["wpauc@3", "recall", "recall@", "Recall@3"])
def test_a_metric_that_has_no_value_a_user_is_refused_by_name(metric):
    with pytest.raises(ValueError, match=f"metric: .*{metric}"):
        statistics.per_user(np.array([0]), metric)


def test_a_metric_without_a_word_is_of_test():
    assert statistics.part_of("recall@3") == ("test", "recall@3")
    assert statistics.part_of("valid recall@3") == ("valid", "recall@3")
    assert statistics.part_of("recall@3 exact") == ("test", "recall@3 exact")


def test_recall_on_the_rl_prompts_is_tested_over_seeds_only():
    assert statistics.part_of("train recall@3") == ("train", "recall@3")
    assert statistics.is_per_user("valid recall@3") and not statistics.is_per_user("train recall@3")
    one = record("GRPO", 0, [0, -1])
    found = dataclasses.replace(one, values={**one.values, "train recall@3": 0.25})
    assert statistics.value_of(found, "train recall@3") == 0.25


def test_spread_is_the_mean_and_the_sample_deviation():
    spread = statistics.spread([1.0, 2.0, 6.0])
    assert (spread.mean, spread.seeds) == (3.0, 3)
    assert spread.deviation == pytest.approx(np.sqrt((4 + 1 + 9) / 2))
    assert spread.standard_error == pytest.approx(stats.sem([1.0, 2.0, 6.0]))
    assert statistics.spread([1.0]) == statistics.Spread(1.0, None, 1)
    with pytest.raises(ValueError, match="values: expected at least one"):
        statistics.spread([])


def test_with_one_seed_and_recall_the_test_over_users_is_mcnemars():
    base, row = planted(users=500, better=30, worse=15)
    comparison = statistics.compare(
        [record("base", 0, base), record("row", 0, row)], "office", "row", "base", "recall@3"
    )
    assert comparison is not None and comparison.over_users is not None
    # 9999 draws: the deviation of p = .036 is .0019.
    assert comparison.over_users.p == pytest.approx(stats.binomtest(15, 45).pvalue, abs=0.006)
    users = comparison.over_users
    assert (users.gained, users.lost, users.users) == (30, 15, 500)
    assert comparison.difference == pytest.approx(15 / 500)
    assert comparison.p_seeds is None


def test_tests_over_users_agree_with_scipys():
    generator = np.random.default_rng(1)
    differences = np.where(generator.random(400) < 0.15, generator.choice([-0.5, 0.2, 0.4, 1.0], 400), 0.0)
    differences -= np.where(differences > 0, 0.2, 0.0)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=9999, random_state=0
    )
    assert 0.05 < expected.pvalue < 0.95  # where a wrong test would show
    # Both are 9999 draws of a share: its deviation is .005 at most.
    assert statistics.sign_flip_test(differences) == pytest.approx(expected.pvalue, abs=0.02)
    interval = stats.bootstrap((differences,), np.mean, method="percentile", random_state=0).confidence_interval
    # The ends are quantiles of 2000 draws: they vary by some 6 % of the standard error each.
    error = differences.std() / np.sqrt(len(differences))
    np.testing.assert_allclose(statistics.bootstrap_interval(differences), interval, atol=0.2 * error)


def test_a_small_sample_of_differences_has_its_exact_p():
    # All six of a sign: 2 of the 64 flips are as far. 9999 draws of a share of 1/32 deviate by .0017.
    assert statistics.sign_flip_test(np.ones(6)) == pytest.approx(2 / 64, abs=0.006)


def test_a_planted_effect_is_found_over_users_and_over_seeds():
    records = []
    for seed, better in enumerate([60, 55, 70, 62]):
        base, row = planted(users=1000, better=better, worse=20)
        records += [record("base", seed, base), record("row", seed, row)]
    comparison = statistics.compare(records, "office", "row", "base", "ndcg@5")
    assert comparison is not None and comparison.over_users is not None
    assert comparison.over_users.p == 1e-4  # the least that 9999 draws can say
    seeds = [[statistics.value_of(each, "ndcg@5") for each in records if each.row == row] for row in ("row", "base")]
    assert comparison.p_seeds == pytest.approx(stats.ttest_rel(*seeds).pvalue)
    low, high = comparison.over_users.interval
    assert 0 < low < comparison.difference < high
    assert (comparison.over_users.gained, comparison.over_users.lost) == (60 + 55 + 70 + 62, 4 * 20)


def test_without_an_effect_one_comparison_in_twenty_says_p_below_one_in_twenty():
    generator = np.random.default_rng(2)
    draws = 400
    found = covered = 0
    for _ in range(draws):
        # Two seeds of 300 users, a quarter of whom changes, to either side alike.
        differences = np.where(generator.random((2, 300)) < 0.25, generator.choice([-1.0, 1.0], (2, 300)), 0.0).mean(0)
        found += statistics.sign_flip_test(differences) < 0.05
        low, high = statistics.bootstrap_interval(differences)
        covered += low <= 0.0 <= high
    # Binomial: 20 of 400 with a deviation of 4.4, and 380 with the same.
    assert 7 <= found <= 34
    assert 364 <= covered <= 396


def test_rows_that_are_the_same_do_not_differ():
    records = [record(row, seed, [0, 1, -1, 4]) for row in ("base", "row") for seed in range(3)]
    comparison = statistics.compare(records, "office", "row", "base", "recall@3")
    assert comparison is not None and comparison.over_users is not None
    assert (comparison.difference, comparison.p_seeds) == (0.0, None)
    assert comparison.over_users == statistics.OverUsers(users=4, interval=(0.0, 0.0), p=1.0, gained=0, lost=0)


def test_only_seeds_that_both_rows_have_are_compared():
    records = [record("base", 0, [-1, -1]), record("base", 2, [-1, -1]), record("row", 1, [0, 0])]
    assert statistics.compare(records, "office", "row", "base", "recall@1") is None
    comparison = statistics.compare([*records, record("row", 2, [0, -1])], "office", "row", "base", "recall@1")
    assert comparison is not None and comparison.over_users is not None
    assert (comparison.seeds, comparison.difference) == ((2,), 0.5)


def test_users_whose_seeds_cancel_out_are_no_difference():
    records = [record("base", 0, [0, 5, 2]), record("base", 1, [5, 0, 2]), record("base", 2, [5, 5, 2])]
    records += [record("row", 0, [5, 0, 2]), record("row", 1, [0, 5, 2]), record("row", 2, [5, 5, 2])]
    comparison = statistics.compare(records, "office", "row", "base", "recall@1")
    assert comparison is not None and comparison.over_users is not None
    assert comparison.over_users == statistics.OverUsers(users=3, interval=(0.0, 0.0), p=1.0, gained=2, lost=2)


def test_holms_correction_of_known_p_values():
    # The example of Holm's procedure: .005 x 4, .01 x 3, .03 x 2, then no less than the one before.
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.7, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_rows_are_corrected_for_their_number_and_those_that_were_never_run_do_not_count():
    base, row = planted(users=400, better=20, worse=5)
    records = [record("base", 0, base), record("a", 0, row), record("b", 0, base)]
    a, b = statistics.compare_rows(records, "office", dict.fromkeys(["a", "b", "never run"], "base"), "recall@1")
    assert (a.row, b.row) == ("a", "b")
    assert a.over_users is not None and b.over_users is not None
    assert a.over_users.p_holm == pytest.approx(2 * a.over_users.p)
    assert b.over_users.p_holm == 1.0


def test_a_figure_that_users_do_not_have_one_by_one_is_tested_over_seeds_only():
    values = {"base": (0.1, 0.2, 0.3), "row": (0.2, 0.25, 0.5)}
    records = [
        dataclasses.replace(record(row, seed, [0]), values={"test wpauc@3 exact": value})
        for row, found in values.items()
        for seed, value in enumerate(found)
    ]
    (comparison,) = statistics.compare_rows(records, "office", {"row": "base"}, "wpauc@3 exact")
    assert comparison.over_users is None
    assert comparison.p_seeds == pytest.approx(stats.ttest_rel(values["row"], values["base"]).pvalue)


def test_a_change_over_the_baseline_is_in_shares_of_it():
    records = [record("base", 0, [0, -1, -1, -1]), record("base", 1, [0, 0, 0, -1])]
    records += [record("row", 0, [0, 0, -1, -1]), record("row", 1, [0, 0, 0, -1])]
    change = statistics.relative_change(records, "office", "row", "base", "recall@1")
    assert change is not None
    # The baseline's mean is .5; the row is .25 above it with one seed and equal with the other.
    assert (change.mean, change.deviation) == (0.25, pytest.approx(np.std([0.5, 0.0], ddof=1)))
    absolute = statistics.relative_change(records, "office", "row", None, "recall@1")
    assert absolute is not None
    assert absolute.mean == 0.625
    assert statistics.relative_change(records, "office", "not run", "base", "recall@1") is None


def test_records_that_cannot_be_compared_are_refused_by_name():
    records = [record("base", 0, [0, 1]), record("row", 0, [0, 1, 2])]
    with pytest.raises(ValueError, match=r"same users .*office.* \[2, 3\] users"):
        statistics.compare(records, "office", "row", "base", "recall@1")
    with pytest.raises(ValueError, match="row 'row', data 'office', seed 0, got two"):
        statistics.records_by_seed([*records, records[1]], "office", "row")


def test_a_metric_that_is_no_value_comes_from_the_ranks():
    made = record("row", 0, [0, 1, 6, -1])
    assert statistics.value_of(made, "recall@2") == 0.5
    assert statistics.value_of(made, "valid recall@2") is None
    assert statistics.value_of(made, "auc exact") is None
    assert statistics.value_of(dataclasses.replace(made, values={"test recall@2": 0.7}), "recall@2") == 0.7
