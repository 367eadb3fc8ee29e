"""TAWin advantages in PyTorch without a loop over the group, fit for `torch.compile`: the peer of `group_advantages`.

The reference op walks the group in Python to lose no digit; here the tails of the softmax come from one
`logcumsumexp`, in fp64 all the same, as ranks over a small temperature want it.
"""

from __future__ import annotations

import math

import torch
from tawin_kernels import TAWin
from torch import Tensor


def torch_group_advantages(rewards: Tensor, scores: Tensor, tawin: TAWin, eps: float = 1e-4) -> Tensor:
    """`tawin_kernels.group_advantages` of complete groups: rewards, scores fp32 [B, G] to fp32 [B, G]."""
    G = rewards.shape[-1]
    negatives = rewards <= 0
    sizes = negatives.sum(-1, keepdim=True).double()  # |N|, [B, 1]
    order = scores.argsort(dim=-1, descending=True, stable=True)
    ranks_in_order = negatives.gather(-1, order).double().cumsum(-1) - 1
    ranks = torch.zeros_like(ranks_in_order).scatter(-1, order, ranks_in_order)  # sigma, [B, G]
    anchors = torch.full_like(sizes, tawin.anchor)
    if tawin.rank_transform == "log2":
        ranks, anchors = (1 + ranks.clamp(min=0)).log2(), (1 + anchors).log2()
    elif tawin.rank_transform == "fraction":
        ranks, anchors = ranks / sizes.clamp(min=1), anchors / sizes.clamp(min=1)

    # x / tau, the largest first. If the m first saturate, log sum of the others' exp is the tail at m; the smallest m
    # with window - m <= tail / (own exp) is the one.
    scaled = (-(ranks - anchors).abs() / tawin.temperature).masked_fill(~negatives, -math.inf)
    ordered, by_distance = scaled.sort(dim=-1, descending=True, stable=True)
    tails = ordered.flip(-1).logcumsumexp(-1).flip(-1)
    saturated = torch.arange(G, dtype=torch.float64, device=rewards.device)  # m
    first = ((tawin.window - saturated).log() <= tails - ordered).byte()
    m = (first | (saturated >= math.ceil(tawin.window) - 1)).byte().argmax(-1, keepdim=True)  # [B, 1]
    raw = ((ordered - tails.gather(-1, m)).exp() * (tawin.window - m)).masked_fill(saturated < m, 1.0)
    raw = torch.zeros_like(raw).scatter(-1, by_distance, raw).masked_fill(~negatives, 0.0)  # T
    weights = torch.where(negatives & (sizes > tawin.window), raw * sizes / raw.sum(-1, keepdim=True), 1.0)

    centered = rewards - rewards.mean(-1, keepdim=True)
    advantages = centered / (rewards.std(-1, keepdim=True) + eps) * weights.float()
    is_dead = rewards.amax(-1, keepdim=True) <= rewards.amin(-1, keepdim=True)
    return advantages.masked_fill(is_dead, 0.0)
