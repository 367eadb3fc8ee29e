"""Group-relative advantages and the TAWin window over a group's negatives, in plain PyTorch.

Nothing is checked here: arguments come in as the public ops let them in. A weighting of another kind needs no change
here: `tawin_grpo_loss(..., advantages=)` takes the advantages that it makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ...types import TAWin

RANK_TRANSFORMS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "identity": lambda ranks, sizes: ranks,
    "log2": lambda ranks, sizes: (1.0 + ranks.clamp(min=0.0)).log2(),
    "fraction": lambda ranks, sizes: ranks / sizes.clamp(min=1.0),
}
"""phi, by `TAWin.rank_transform`: of ranks, fp64 [B, G] or [B, 1], and of |N|, fp64 [B, 1]. The kernels have a branch
each in `_closeness`."""


def relative_advantages(
    rewards: torch.Tensor,
    scores: torch.Tensor | None,
    valid: torch.Tensor,
    tawin: TAWin | None,
    normalize_std: bool,
    eps: float,
) -> torch.Tensor:
    """A'_m = w_m (r_m - mean) / (std + eps) within each group; the values of what is not valid are never read.

    rewards: fp32 or fp64 [B, G], the dtype of the result. scores: [B, G], any where tawin is None. valid: bool [B, G].
    """
    dtype, rewards = rewards.dtype, rewards.double().masked_fill(~valid, 0.0)  # [B, G]
    counts = valid.sum(-1, keepdim=True)  # [B, 1]
    # fp64: a common offset of 1e4 leaves fp32 two digits of a spread of .01. In units of a power of two near the
    # largest reward: neither does the square of 1e300 overflow, nor is that of 1e-200 lost.
    exponents = torch.frexp(rewards.abs().amax(-1, keepdim=True)).exponent.clamp(min=-1000) - 1  # [B, 1]
    unit = torch.ldexp(torch.ones_like(rewards[:, :1]), exponents)
    centered = rewards / unit
    centered = (centered - centered.sum(-1, keepdim=True) / counts.clamp(min=1)).masked_fill(~valid, 0.0)
    if normalize_std:
        std = (centered.square().sum(-1, keepdim=True) / (counts - 1).clamp(min=1)).sqrt()
        advantages = centered / (std + eps / unit)
    else:
        advantages = centered * unit
    if tawin is not None:
        assert scores is not None
        negatives = valid & (rewards <= 0)
        weights = window_weights(scores.masked_fill(~valid, -math.inf), negatives, tawin)
        advantages = advantages * weights

    # The same reward for every valid completion teaches nothing: exactly 0, free of the rounding of the mean.
    largest = rewards.masked_fill(~valid, -math.inf).amax(-1, keepdim=True)
    smallest = rewards.masked_fill(~valid, math.inf).amin(-1, keepdim=True)
    return advantages.masked_fill(~valid | (largest <= smallest), 0.0).to(dtype)


def window_weights(scores: torch.Tensor, negatives: torch.Tensor, tawin: TAWin) -> torch.Tensor:
    """The weights w of the negatives around the anchor rank, 1 elsewhere, fp64 [B, G]."""
    # [B, G], in fp64 from here on: the tensors are small, and a rounded rank distance over a small temperature is not.
    order = (scores + 0.0).argsort(dim=-1, descending=True, stable=True)
    ranks_in_order = (negatives.gather(-1, order).long().cumsum(-1) - 1).double()
    ranks = torch.empty_like(ranks_in_order).scatter(-1, order, ranks_in_order)  # sigma
    sizes = negatives.sum(-1, keepdim=True).double()  # |N|, [B, 1]
    phi = RANK_TRANSFORMS[tawin.rank_transform]
    distances = -(phi(ranks, sizes) - phi(torch.full_like(sizes, tawin.anchor), sizes)).abs()
    distances = distances.masked_fill(~negatives, -math.inf)  # x

    # T_i = min(1, exp((x_i - lambda) / tau)) with sum k. If the m largest saturate at 1, the others share k - m as a
    # softmax does: T_i = (k - m) exp((x_i - x_m) / tau) / tail_m with tail_m = sum_{j >= m} exp((x_j - x_m) / tau).
    # The smallest m at which the largest of them, (k - m) / tail_m, is at most 1 is the solution. It never fails at
    # m = ceil(k) - 1, as tail_m >= 1. Differences are taken before the division, so no temperature loses digits.
    ordered, by_distance = distances.sort(dim=-1, descending=True, stable=True)
    G = scores.shape[-1]
    tails = torch.ones_like(ordered)
    for i in range(G - 2, -1, -1):
        step = ((ordered[:, i + 1] - ordered[:, i]) / tawin.temperature).exp().nan_to_num(0.0)  # NaN: no negatives here
        tails[:, i] = 1.0 + step * tails[:, i + 1]
    saturated = torch.arange(G, dtype=torch.float64, device=scores.device)  # m
    first = (tawin.window - saturated <= tails).double().argmax(dim=-1, keepdim=True)  # [B, 1]
    m = first.double()
    raw = ((ordered - ordered.gather(-1, first)) / tawin.temperature).exp() * (tawin.window - m)
    raw = raw / tails.gather(-1, first)
    raw = torch.where(saturated < m, 1.0, raw)
    raw = torch.empty_like(raw).scatter(-1, by_distance, raw)  # T

    weights = raw * sizes / raw.masked_fill(~negatives, 0.0).sum(-1, keepdim=True)
    is_weighted = negatives & (sizes > tawin.window)
    return torch.where(is_weighted, weights, 1.0)
