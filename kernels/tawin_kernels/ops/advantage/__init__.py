"""Group-relative advantages, with the negatives weighted by TAWin around an anchor rank (arXiv 2604.22504).

The kernels are in `kernels`, the same in plain PyTorch in `weights`.
"""

from __future__ import annotations

import torch

from ...arguments import Impl
from ...dispatch import op
from ...types import TAWin
from . import reference
from .kernels import MAX_GROUP, GroupRewards, triton_group_advantages, triton_tawin_weights


def require_small_groups(name: str, tensor: torch.Tensor, impl: Impl) -> None:
    """Groups of `tensor` [B, G] that do not fit the kernel are no error unless the kernel was asked for."""
    if impl == "triton" and tensor.shape[1] > MAX_GROUP:
        raise ValueError(
            f"{name}: expected at most {MAX_GROUP} completions a group with impl='triton', got {tensor.shape[1]}; "
            "use impl='auto' or 'reference'"
        )


@op(reference.tawin_weights)
@torch.no_grad()
def tawin_weights(
    scores: torch.Tensor,
    negatives: torch.Tensor,
    tawin: TAWin,
    *,
    impl: Impl = "auto",
    check_values: bool | None = None,
) -> torch.Tensor:
    """The weights of a group's negatives: a soft window of mass tawin.window around rank tawin.anchor.

    With sigma_i the zero-based rank of negative i by descending score (ties: lower index first) and phi the rank
    transform, x_i = -|phi(sigma_i) - phi(anchor)|, T_i = min(1, exp((x_i - lambda) / temperature)) with lambda such
    that sum T_i = window, and w_i = T_i |N| / sum_j T_j (arXiv 2604.22504). From window >= |N| on, all are 1.

    scores: [B, G] fp32, bf16, fp16, fp64; -inf is allowed and ranks last. negatives: bool [B, G].
    impl: "auto", "triton" (G <= 512) or "reference"; an explicit choice that cannot run raises.
    check_values: True: check tensor values on a GPU too, which synchronises it. On the CPU they are always checked.

    Returns fp32 [B, G] (fp64 for fp64), 1 where not a negative; the negatives' weights sum to |N|.
    Raises TypeError or ValueError naming the argument (NaN scores).
    """
    require_small_groups("scores", scores, impl)
    return triton_tawin_weights(scores, negatives, tawin)


@op(reference.group_advantages)
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
    """A_m = (r_m - mean(r)) / (std(r) + eps) within each group, times the TAWin weight for negatives.

    rewards: [B, G] fp32, bf16, fp16, fp64, finite. A negative is a valid completion with reward <= 0.
    scores: [B, G] floating, what the negatives are ranked by; needed with tawin.
    tawin: the window; None: plain GRPO advantages.
    normalize_std: divide by the unbiased standard deviation (n - 1) plus eps.
    valid: bool [B, G], the completions that exist; None: all. Others get 0, count nowhere and are not read.
    impl: "auto", "triton" (G <= 512) or "reference"; an explicit choice that cannot run raises.
    check_values: True: check tensor values on a GPU too, which synchronises it. On the CPU they are always checked.

    Returns fp32 [B, G] (fp64 for fp64 rewards), computed in fp64: no offset of the rewards costs digits. A group
    whose valid rewards are all equal gets exactly 0.
    Raises TypeError or ValueError naming the argument.
    """
    require_small_groups("rewards", rewards, impl)
    return triton_group_advantages(GroupRewards(rewards, scores, tawin, normalize_std, eps), valid)
