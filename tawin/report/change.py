"""What RL changed on test, user by user, with an interval. The page's first sentence; page.py calls it."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import numpy as np

from ..run.folder import RanksByUser
from ..run.records import Group

QUANTILE = 1.959964  # of the normal distribution: 95 % lie within


@dataclass(frozen=True)
class Change:
    """Of a metric's mean over the test users, from SFT to GRPO."""

    before: float
    after: float
    users: int | None
    """Those behind the interval; None: the runs kept no ranks, or there is one user."""
    error: float
    """Half the width of the 95 % interval; 0 without users."""

    @property
    def difference(self) -> float:
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """What the interval says, in a few words; "" without one."""
        if self.users is None:
            return ""
        if abs(self.difference) <= self.error:
            return "0 lies within: these users show no change"
        return "above 0: a gain" if self.difference > 0 else "below 0: a loss"


def change_of(group: Group, metric: str) -> Change | None:
    """None where a stage has no test figures yet. Runs of several seeds are one: a user's change is their mean."""
    before, after = (group.values(stage, "test", metric) for stage in ("sft", "grpo"))
    if not before or not after:
        return None
    differences = _differences(group, metric)
    if differences is None or len(differences) < 2:
        return Change(fmean(before), fmean(after), None, 0.0)
    error = QUANTILE * float(differences.std(ddof=1)) / len(differences) ** 0.5
    return Change(fmean(before), fmean(after), len(differences), error)


def _differences(group: Group, metric: str) -> np.ndarray | None:
    """Of each user, the mean change over the runs that evaluated it, fp64 [users]; None where a run has no ranks."""
    users, changes = [], []
    for run in group.runs:
        before, after = (run.folder.ranks(stage, "test") for stage in ("sft", "grpo"))
        if before is None or after is None:
            return None
        users.append(before.user_ids)
        changes.append(gains(after, metric) - gains(before, metric))
    ids, rows = np.unique(np.concatenate(users), return_inverse=True)
    return np.bincount(rows, np.concatenate(changes), len(ids)) / np.bincount(rows, minlength=len(ids))


def gains(found: RanksByUser, metric: str) -> np.ndarray:
    """What each user adds to the mean that "recall@K" or "ndcg@K" is. fp64 [N]"""
    family, _, k = metric.partition("@")
    is_hit = (found.ranks >= 0) & (found.ranks < int(k))
    return is_hit / np.log2(found.ranks.clip(0) + 2) if family == "ndcg" else is_hit.astype(np.float64)
