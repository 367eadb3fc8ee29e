"""Weights and advantages in plain PyTorch; their mathematics is in `weights`."""

from __future__ import annotations

import torch

from ...arguments import Impl
from ...checks import check_group_advantages, check_tawin_weights
from ...dispatch import reference_op
from ...types import TAWin
from ..log_prob.lm_head import accumulation_dtype
from .weights import relative_advantages, window_weights


@reference_op(check_tawin_weights)
@torch.no_grad()
def tawin_weights(
    scores: torch.Tensor,
    negatives: torch.Tensor,
    tawin: TAWin,
    *,
    impl: Impl = "auto",
    check_values: bool | None = None,
) -> torch.Tensor:
    """The weights w of the negatives around the anchor rank; see `tawin_kernels.tawin_weights`."""
    return window_weights(scores, negatives, tawin).to(accumulation_dtype(scores))


@reference_op(check_group_advantages)
@torch.no_grad()
def group_advantages(
    rewards: torch.Tensor,
    scores: torch.Tensor | None = None,
    *,
    tawin: TAWin | None = None,
    normalize_std: bool = True,
    eps: float = 1e-4,
    valid: torch.Tensor | None = None,
    impl: Impl = "auto",
    check_values: bool | None = None,
) -> torch.Tensor:
    """A'_m = w_m (r_m - mean) / (std + eps) within each group; see `tawin_kernels.group_advantages`."""
    if valid is None:
        valid = torch.ones_like(rewards, dtype=torch.bool)
    return relative_advantages(rewards.to(accumulation_dtype(rewards)), scores, valid, tawin, normalize_std, eps)
