"""What the figures of several seeds say: means with deviations, and paired tests of a row against the baseline row.

Two tests, since there are two things that chance decides.

Over seeds: had training started from other seeds, would the row still be ahead? A paired t-test (scipy) on one metric
a seed. With two to five seeds it sees large effects only; a single seed says nothing, and neither do differences that
are all the same.

Over users: had other users come by, would these models still differ? Each user's metric is averaged over the seeds, and
the unit is the user's difference, row - baseline. Most are exactly 0: both rows found the target, or neither did. The
test is the sign-flip permutation test of the mean: where there is no difference, a coin tossed for each user might as
well have said which of the two models is the row. It is valid with any number of zeros, as a zero has no sign to flip;
with one seed and Recall@K it is McNemar's exact test, drawn. Wilcoxon's test weighs ranks of the differences, not the
differences that are reported, and has to drop the zeros or rank them by convention: not used. The 95 % interval of the
mean difference is a percentile bootstrap over all users, zeros included.

Both are scipy's `permutation_test` and `bootstrap`, with which the tests compare them, but draw how many users of a
kind are flipped or come, not user after user: a table has hundreds of comparisons of 20,000 users. Both take the
trained models as given: a small p over users beside a large p over seeds is an effect that may belong to these seeds.

Holm's correction is over the rows that are compared on one data set by one metric.

Knows records, not how they were made, and nothing of markdown or figures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import ttest_rel

from tawin.metrics import ndcg_at_k, recall_at_k

from .store import PARTS, Record

_FAMILIES = {"recall": recall_at_k, "ndcg": ndcg_at_k}
_PER_USER = re.compile(r"(recall|ndcg)@(\d+)")
_FLIPS = 9999  # p of at least 1 / 10,000; drawn with a fixed seed, as the bootstraps are
_BOOTSTRAPS = 2000
_DIGITS = 12  # differences are equal that agree to so many decimals: what is left is rounding
_DUST = 10.0**-_DIGITS


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None for one value) of a figure over `seeds` seeds."""

    mean: float
    deviation: float | None
    seeds: int

    @property
    def standard_error(self) -> float | None:
        """Of the mean; None for one value."""
        return None if self.deviation is None else self.deviation / self.seeds**0.5


@dataclass(frozen=True)
class OverUsers:
    """What the users say of a row against the baseline, each user's metric averaged over the seeds."""

    users: int
    interval: tuple[float, float]
    """The 95 % bootstrap interval of the mean difference."""
    p: float
    gained: int
    lost: int
    """Users whose metric is higher, lower than the baseline's, counted seed by seed and summed."""
    p_holm: float | None = None
    """Corrected for the rows that were compared; None for a comparison on its own."""


@dataclass(frozen=True)
class Comparison:
    """A row against the baseline row: same data, seeds and users."""

    data: str
    row: str
    baseline: str
    metric: str
    seeds: tuple[int, ...]
    """Those that both rows have."""
    difference: float
    """Mean over seeds (and users) of row - baseline."""
    p_seeds: float | None
    """None where seeds say nothing: fewer than 2, or differences that are all the same."""
    over_users: OverUsers | None = None
    """None for a metric that users do not have one by one."""


def part_of(metric: str) -> tuple[str, str]:
    """The part of the data and the metric: "valid recall@3" -> ("valid", "recall@3"); "recall@3" is of test.

    "train" are the RL prompts, whose ranks no record holds.
    """
    part, _, name = metric.partition(" ")
    return (part, name) if part in (*PARTS, "train") else ("test", metric)


def is_per_user(metric: str) -> bool:
    """Whether ranks give the metric of each user: recall@K and ndcg@K; other values stand for all users at once."""
    part, name = part_of(metric)
    return part in PARTS and _PER_USER.fullmatch(name) is not None


def per_user(ranks: np.ndarray, metric: str) -> np.ndarray:
    """The metric of each user.

    Args:
        ranks: zero-based rank of each user's target, integers [users]; -1 = not found.
        metric: "recall@K" or "ndcg@K"; K at most the length of the lists in which the ranks were found.

    Returns:
        float64 [users]; its mean is `tawin.metrics.recall_at_k` or `ndcg_at_k`.
    """
    match = _PER_USER.fullmatch(metric)
    if match is None:
        raise ValueError(f"metric: expected recall@K or ndcg@K, got {metric!r}")
    values, users = np.unique(ranks, return_inverse=True)
    of_one = _FAMILIES[match[1]]
    return np.array([of_one(values[i : i + 1], int(match[2])) for i in range(len(values))])[users]


def records_by_seed(records: Iterable[Record], data: str, row: str) -> dict[int, Record]:
    """The records of a row on a data set, by ascending seed; two of one seed are refused."""
    found: dict[int, Record] = {}
    for record in records:
        if (record.data, record.row) == (data, row):
            if record.seed in found:
                raise ValueError(f"records: expected one of row {row!r}, data {data!r}, seed {record.seed}, got two")
            found[record.seed] = record
    return dict(sorted(found.items()))


def value_of(record: Record, metric: str) -> float | None:
    """A record's metric, from its values or else from its ranks; None where neither has it."""
    part, name = part_of(metric)
    if f"{part} {name}" in record.values:
        return record.values[f"{part} {name}"]
    if is_per_user(metric) and part in record.ranks:
        return float(per_user(record.ranks[part], name).mean())
    return None


def values_by_seed(records: Iterable[Record], data: str, row: str, metric: str) -> dict[int, float]:
    """A row's metric by ascending seed, of the records that have it."""
    found = {seed: value_of(record, metric) for seed, record in records_by_seed(records, data, row).items()}
    return {seed: value for seed, value in found.items() if value is not None}


def spread(values: Sequence[float]) -> Spread:
    """Of the values of one figure, one a seed; at least one."""
    if len(values) == 0:
        raise ValueError("values: expected at least one, got none")
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), deviation, len(values))


def relative_change(records: Sequence[Record], data: str, row: str, baseline: str | None, metric: str) -> Spread | None:
    """A row's metric over the seeds as a change over the baseline's, seed by seed, in shares of the baseline's mean.

    Without a baseline the metric itself. None where the two have no seed in common, or the baseline's mean is 0.
    """
    run = values_by_seed(records, data, row, metric)
    if baseline is None:
        return spread(list(run.values())) if run else None
    base = values_by_seed(records, data, baseline, metric)
    seeds = [seed for seed in run if seed in base]
    unit = float(np.mean([base[seed] for seed in seeds])) if seeds else 0.0
    return spread([(run[seed] - base[seed]) / unit for seed in seeds]) if unit else None


def compare(records: Sequence[Record], data: str, row: str, baseline: str, metric: str) -> Comparison | None:
    """A row against the baseline by one metric, not corrected for other rows.

    Returns:
        None where the two have no seed in common. A metric that users do not have one by one is tested over seeds only.

    Raises:
        ValueError: ranks of other numbers of users.
    """
    ours, theirs = (values_by_seed(records, data, one, metric) for one in (row, baseline))
    seeds = tuple(seed for seed in ours if seed in theirs)
    if not seeds:
        return None
    differences = np.array([ours[seed] - theirs[seed] for seed in seeds])
    comparison = Comparison(
        data, row, baseline, metric, seeds, float(differences.mean()), p_seeds=paired_t_test(differences)
    )
    if not is_per_user(metric):
        return comparison
    part, name = part_of(metric)
    runs = [records_by_seed(records, data, one) for one in (row, baseline)]
    sides = [[run[seed] for seed in seeds] for run in runs]
    if any(part not in record.ranks for side in sides for record in side):
        return comparison
    ranks = [[record.ranks[part] for record in side] for side in sides]
    sizes = {len(each) for side in ranks for each in side}
    if len(sizes) > 1:
        raise ValueError(
            f"records: expected the same users in all records of data {data!r}, got {sorted(sizes)} users in rows "
            f"{row!r} and {baseline!r}"
        )
    rows, bases = (np.stack([per_user(each, name) for each in side]) for side in ranks)  # [seeds, users]
    users = (rows - bases).mean(axis=0)  # [users]
    users[np.abs(users) < _DUST] = 0.0
    return replace(
        comparison,
        over_users=OverUsers(
            users=len(users),
            interval=bootstrap_interval(users),
            p=sign_flip_test(users),
            gained=int((rows > bases).sum()),
            lost=int((rows < bases).sum()),
        ),
    )


def compare_rows(records: Sequence[Record], data: str, baselines: Mapping[str, str], metric: str) -> list[Comparison]:
    """Each row against its baseline (row -> baseline row) where they have a seed in common; p over users corrected."""
    found = [compare(records, data, row, baseline, metric) for row, baseline in baselines.items()]
    comparisons = [comparison for comparison in found if comparison is not None]
    tested = [comparison.over_users for comparison in comparisons if comparison.over_users is not None]
    corrected = iter(holm([each.p for each in tested]))
    return [
        replace(each, over_users=replace(each.over_users, p_holm=next(corrected))) if each.over_users else each
        for each in comparisons
    ]


def sign_flip_test(differences: np.ndarray) -> float:
    """Two-sided p of the mean of paired differences [users] under random flips of their signs; 1 where all are 0.

    Users whose differences are of one size are drawn together: how many come out positive is a binomial number.
    """
    sizes, users = np.unique(np.abs(differences[differences != 0.0]).round(_DIGITS), return_counts=True)
    positive = np.random.default_rng(0).binomial(users, 0.5, (_FLIPS, len(sizes)))  # [flips, sizes]
    sums = (2 * positive - users) @ sizes  # [flips]
    as_far = np.abs(sums) >= abs(differences.sum()) - _DUST * len(differences)
    return float((1 + as_far.sum()) / (1 + _FLIPS))  # the flips that happened are one of the draws


def bootstrap_interval(differences: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of [users] differences when the users are drawn anew.

    Users of equal differences are drawn together: how many of each come is a multinomial number.
    """
    values, users = np.unique(differences.round(_DIGITS), return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(differences), users / len(differences), _BOOTSTRAPS)
    low, high = np.quantile(drawn @ values / len(differences), [0.025, 0.975])
    return float(low), float(high)


def paired_t_test(differences: np.ndarray) -> float | None:
    """Two-sided p of differences [seeds]; None with fewer than 2, or where they do not vary."""
    if len(differences) < 2 or np.ptp(differences) < _DUST:
        return None
    return float(ttest_rel(differences, np.zeros_like(differences)).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the smallest p times n, the next times n - 1 and so on, never falling, at most 1."""
    order = np.argsort(p_values, kind="stable")
    stepped = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return [float(p) for p in corrected]
