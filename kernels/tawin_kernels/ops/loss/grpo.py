"""The GRPO family of group losses, from log-probs and advantages. The kernels are in `kernels`."""

from __future__ import annotations

import torch

from ...arguments import Impl
from ...dispatch import op
from ...types import GRPOLoss
from . import reference
from .kernels import LossOptions, triton_grpo_loss
from .types import ImportanceLevel, LossType


@op(reference.grpo_loss)
def grpo_loss(
    log_probs: torch.Tensor,
    mask: torch.Tensor,
    advantages: torch.Tensor,
    *,
    old_log_probs: torch.Tensor | None = None,
    ref_log_probs: torch.Tensor | None = None,
    loss_type: LossType = "grpo",
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    beta: float = 0.0,
    valid: torch.Tensor | None = None,
    denominator: float | torch.Tensor | None = None,
    importance_level: ImportanceLevel = "token",
    impl: Impl = "auto",
    check_values: bool | None = None,
) -> GRPOLoss:
    """The clipped surrogate -min(rho A, clip(rho, 1 - epsilon_low, 1 + epsilon_high) A) + beta KL of a batch of groups.

    rho = exp(log_probs - old_log_probs); KL is the k3 estimate exp(ref - logp) - (ref - logp) - 1 per token. A
    log-ratio above 80 counts as 80, so that no exp overflows. At a bound itself a ratio is not clipped and has its full
    gradient, so an on-policy step is the policy gradient at any epsilon, 0 too.

    log_probs: [B, G, L] fp32, bf16, fp16 (fp64 too on the CPU).
    mask: bool [B, G, L], the tokens that exist; others are never read.
    advantages: [B, G] floating. old_log_probs, ref_log_probs: [B, G, L] floating, constants for the
        gradient; old None: log_probs.
    loss_type: how token losses are summed up and what the sum is divided by (the denominator):
        "grpo": means over the tokens of a completion, by completions. "gspo": the same with one ratio a completion,
        exp of its mean log rho. "dapo", "bnpo": all tokens, by tokens (TRL's two differ in whose tokens: pass the
        denominator). "dr_grpo": all tokens, by completions x L. "cispo": as "dapo", of -min(rho, epsilon_high) A logp,
        where the minimum is a constant for the gradient (arXiv 2506.13585): epsilon_high is the largest ratio itself
        then, at least 1 (5 is customary), and epsilon_low is not used.
    importance_level: "token", or "sequence": one ratio a completion as in "gspo" (arXiv 2507.18071), for any loss_type.
    valid: bool [B, G], the completions that exist; None: mask.any(-1). Others count nowhere.
    denominator: a number or scalar tensor > 0 to divide by in place of the input's own count. Whoever leaves groups out
        or splits a batch passes the full batch's.
    impl: "auto", "triton" or "reference"; an explicit choice that cannot run raises.
    check_values: True: check tensor values on a GPU too, which synchronises it. On the CPU they are always checked.

    Returns GRPOLoss, fp32 (fp64 for fp64): the scalar loss with a gradient; log_probs, advantages, kl and clip_fraction
    detached. The Triton loss is differentiable once: a second derivative raises RuntimeError, impl="reference" has it.
    Raises TypeError or ValueError naming the argument.
    """
    options = LossOptions(loss_type, importance_level, epsilon_low, epsilon_high, beta)
    return triton_grpo_loss(log_probs, mask, advantages, valid, old_log_probs, ref_log_probs, denominator, options)
