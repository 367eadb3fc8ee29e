"""Rewards: what a completion gets, as plain functions of what is known of it. `grpo.reward` names one of `REWARDS`.

A reward of one's own is a function and its row:

    REWARDS["long titles"] = lambda candidates: ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..catalog.catalog import Catalog


@dataclass(frozen=True)
class Candidates:
    """The completions of a batch of prompts, G per prompt, as a reward sees them."""

    is_target: Tensor
    """bool [B, G]: the user took one of its items next."""
    scores: Tensor
    """fp32 [B, G], summed log p of each; -inf where missing."""
    items: Tensor
    """int64 [B, G], the first item of each sequence as a row of the catalogue; -1 = missing."""
    histories: Sequence[np.ndarray] | None
    """The items that each prompt shows, oldest first; None where the caller of `roll_out` gave none."""
    catalog: Catalog
    """Titles, tokens and the trie."""
    weights: Tensor | None = None
    """fp32 [B, G], what the interaction with the target weighs, the largest of several; 1 where it is none. None:
    interactions have no weights."""

    @property
    def valid(self) -> Tensor:
        """bool [B, G], the completions that exist."""
        return self.items >= 0

    @property
    def worth(self) -> Tensor:
        """fp32 [B, G], what a completion is worth if it is a target: its weight, or 1."""
        return torch.ones_like(self.scores, dtype=torch.float32) if self.weights is None else self.weights


def binary(candidates: Candidates) -> Tensor:
    """1 for a target, or what it weighs, 0 for anything else."""
    return candidates.is_target * candidates.worth


def ranking(candidates: Candidates) -> Tensor:
    """ReRe's rule reward plus its NDCG-shaped penalty for negatives.

        r_i = 1 for a target, else -d_i / sum_j d_j,  d_i = 1 / log2(i + 2);  all 0 in a group without a target

    i is the zero-based rank of a completion by descending score in the whole group, targets and negatives together
    (ties: lower index first): the place in the beam. Targets, too, count in the sum over j: they have a place, and no
    penalty. So it is in ReRe's code (sober-clever/ReRe, rere.py, `ndcg_rewards` and `reward_type == "ranking"`), which
    takes the index in the group for i: another number only where the group is not in the order of its scores, as random
    completions and a target that was put last are not. With one target, of rank i, the mean reward of the group is
    d_i / (G sum_j d_j): the better its place, the higher.

    A target whose interaction has a weight has that in place of 1. Of completions that are not valid nothing counts.
    A negative's reward is never above 0.
    """
    is_target, valid = candidates.is_target, candidates.valid
    order = candidates.scores.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(dim=1)  # [B, G]
    discounts = torch.log2(ranks.float() + 2.0).reciprocal().masked_fill(~valid, 0.0)
    penalties = discounts / discounts.sum(1, keepdim=True)
    rewards = torch.where(is_target, candidates.worth, -penalties)
    return rewards.masked_fill(~(is_target.any(1, keepdim=True) & valid), 0.0)


REWARDS: dict[str, Callable[[Candidates], Tensor]] = {"binary": binary, "ranking": ranking}
"""Name -> fp32 [B, G] of the candidates. A reward above 0 makes a completion a positive; TAWin weighs the others."""


def require_reward(name: str) -> Callable[[Candidates], Tensor]:
    """The reward of that name. ValueError where there is none."""
    if name not in REWARDS:
        raise ValueError(f"grpo.reward: expected one of {', '.join(map(repr, REWARDS))}, got {name!r}")
    return REWARDS[name]
