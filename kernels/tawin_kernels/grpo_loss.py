"""The GRPO family of group losses, from log-probs or straight from hidden states, with TAWin advantages.

The loss knows nothing of models or optimizers; advantages are constants for the gradient.
"""

from __future__ import annotations

import torch

from . import reference
from .arguments import Impl, runs_triton
from .records import GRPOLoss, LossType, TAWin


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
    impl: Impl = "auto",
    check_values: bool | None = None,
) -> GRPOLoss:
    """The clipped surrogate -min(rho A, clip(rho, 1 - epsilon_low, 1 + epsilon_high) A) + beta KL of a batch of groups.

    rho = exp(log_probs - old_log_probs); KL is the k3 estimate exp(ref - logp) - (ref - logp) - 1 a token. A
    log-ratio above 80 counts as 80, so that no exp overflows.

    log_probs: [B, G, L] fp32, bf16, fp16 (fp64 too on the CPU).
    mask: bool [B, G, L], the tokens that exist; others are never read.
    advantages: [B, G] floating. old_log_probs, ref_log_probs: [B, G, L] floating, constants for the
        gradient; old None: log_probs.
    loss_type: how token losses are summed up and what the sum is divided by (the denominator):
        "grpo": means over the tokens of a completion, by completions. "gspo": the same with one ratio a completion,
        exp of its mean log rho. "dapo": all tokens, by tokens. "dr_grpo": all tokens, by completions x L.
    valid: bool [B, G], the completions that exist; None: mask.any(-1). Others count nowhere.
    denominator: a number or scalar tensor > 0 to divide by in place of the input's own count. Whoever leaves groups out
        or splits a batch passes the full batch's.
    impl: "auto", "triton" or "reference"; an explicit choice that cannot run raises.
    check_values: True: check tensor values on a GPU too, which synchronises it. On the CPU they are always checked.

    Returns GRPOLoss, fp32 (fp64 for fp64): the scalar loss with a gradient; log_probs, advantages, kl and clip_fraction
    detached. Raises TypeError or ValueError naming the argument.
    """
    runs_triton("grpo_loss", impl, log_probs)
    return reference.grpo_loss(
        log_probs,
        mask,
        advantages,
        old_log_probs=old_log_probs,
        ref_log_probs=ref_log_probs,
        loss_type=loss_type,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        beta=beta,
        valid=valid,
        denominator=denominator,
        check_values=check_values,
    )


def tawin_grpo_loss(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    token_ids: torch.Tensor,
    mask: torch.Tensor,
    rewards: torch.Tensor,
    scores: torch.Tensor | None,
    *,
    tawin: TAWin | None = TAWin(),  # noqa: B008 (frozen)
    old_log_probs: torch.Tensor | None = None,
    ref_log_probs: torch.Tensor | None = None,
    loss_type: LossType = "grpo",
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    beta: float = 0.0,
    temperature: float = 1.0,
    bias: torch.Tensor | None = None,
    normalize_std: bool = True,
    eps: float = 1e-4,
    valid: torch.Tensor | None = None,
    denominator: float | torch.Tensor | None = None,
    impl: Impl = "auto",
    check_values: bool | None = None,
) -> GRPOLoss:
    """From hidden states and rewards to the loss: `linear_log_probs`, `group_advantages` and `grpo_loss` in one.

    hidden: [B, G, L, H] fp32, bf16, fp16 (fp64 too on the CPU), the state that predicts each completion token.
    lm_head_weight: [V, H], dtype of hidden. bias: [V], dtype of hidden, or None.
    token_ids: int64 [B, G, L], the completions. mask: bool [B, G, L], the tokens that exist. Where the mask is False or
        the token is -100 nothing is read.
    rewards: [B, G] floating. scores: [B, G] floating, what negatives are ranked by.
    tawin: the window of negatives; None: plain GRPO advantages, and scores may be None.
    temperature: logits are divided by it, > 0.
    normalize_std, eps: as in `group_advantages`. The other arguments, the result and the errors: as in `grpo_loss`.

    Call backward outside of an autocast region: `linear_log_probs` says why.
    With beta 0 a completion of advantage 0 (a dead group) has no gradient, so its log-probs are computed without one.
    """
    runs_triton("tawin_grpo_loss", impl, hidden)
    return reference.tawin_grpo_loss(
        hidden,
        lm_head_weight,
        token_ids,
        mask,
        rewards,
        scores,
        tawin=tawin,
        old_log_probs=old_log_probs,
        ref_log_probs=ref_log_probs,
        loss_type=loss_type,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        beta=beta,
        temperature=temperature,
        bias=bias,
        normalize_std=normalize_std,
        eps=eps,
        valid=valid,
        denominator=denominator,
        check_values=check_values,
    )
