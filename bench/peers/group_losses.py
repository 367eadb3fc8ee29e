"""From hidden states to the loss of a batch of groups, as users would compute it today; advantages are given.

Every loss is a function of hidden [B, G, L, H], lm_head_weight [V, H], token_ids, mask [B, G, L], advantages [B, G] and
old_log_probs [B, G, L] or None; it returns the scalar loss, without a KL term, differentiable in the first two. It is a
head of `log_prob_heads` with the clipped surrogate in plain PyTorch around it, as TRL 1.16 works, or one of Liger's two
fused losses. None leaves out groups whose advantages are 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from .log_prob_heads import LOG_PROB_HEADS, LogProbHead, MissingPeer, imported, log_prob_head

GroupLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]

# Completions that LigerFusedLinearGRPOLoss takes at once: 1 unless told otherwise.
LIGER_CHUNKS = (1, 16, 64)
GROUP_LOSSES = (*LOG_PROB_HEADS, *(f"liger_fused {chunk}" for chunk in LIGER_CHUNKS), "liger_full_logits")


@dataclass(frozen=True)
class LossOptions:
    loss_type: str = "grpo"  # or "dapo" or "dr_grpo"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    temperature: float = 1.0


def group_loss(name: str, device: torch.device, options: LossOptions = LossOptions()) -> GroupLoss:
    """One of GROUP_LOSSES for tensors on the device; MissingPeer where it cannot run."""
    if name in LOG_PROB_HEADS:
        return loss_around(log_prob_head(name, device), options)
    kind, _, chunk = name.partition(" ")
    return _liger_fused(int(chunk), device, options) if kind == "liger_fused" else _liger_full_logits(device, options)


def loss_around(head: LogProbHead, options: LossOptions) -> GroupLoss:
    """The head on the tokens that exist, and the surrogate."""

    def loss(
        hidden: Tensor, weight: Tensor, token_ids: Tensor, mask: Tensor, advantages: Tensor, old: Tensor | None
    ) -> Tensor:
        scored = head(hidden[mask], weight, token_ids[mask], options.temperature)
        log_probs = scored.new_zeros(mask.shape).masked_scatter(mask, scored)
        return clipped_surrogate(log_probs, mask, advantages, old, options)

    return loss


def clipped_surrogate(
    log_probs: Tensor, mask: Tensor, advantages: Tensor, old_log_probs: Tensor | None, options: LossOptions
) -> Tensor:
    """The loss of `tawin_kernels.ops.loss.grpo` with beta 0 where every completion is valid, in plain PyTorch."""
    old = log_probs.detach() if old_log_probs is None else old_log_probs
    ratio = (log_probs - old).masked_fill(~mask, 0.0).exp()  # [B, G, L]
    clipped = ratio.clamp(1 - options.epsilon_low, 1 + options.epsilon_high)
    losses = -torch.minimum(ratio * advantages[..., None], clipped * advantages[..., None]) * mask
    if options.loss_type == "grpo":
        return (losses.sum(-1) / mask.sum(-1).clamp(min=1)).mean()
    if options.loss_type == "dapo":
        return losses.sum() / mask.sum().clamp(min=1)
    return losses.sum() / mask.numel()


def _liger_fused(chunk: int, device: torch.device, options: LossOptions) -> GroupLoss:
    """LigerFusedLinearGRPOLoss: a loop over `chunk` completions at a time, gradients computed in the forward pass.

    It compiles its loss, which on the CPU would want a C++ compiler for the same figures.
    """
    liger = imported("liger_kernel.chunked_loss", "liger-kernel>=0.8.5")

    def loss(
        hidden: Tensor, weight: Tensor, token_ids: Tensor, mask: Tensor, advantages: Tensor, old: Tensor | None
    ) -> Tensor:
        fused: Any = liger.LigerFusedLinearGRPOLoss(
            beta=0.0,
            compiled=device.type == "cuda",
            use_ref_model=False,
            chunk_size=chunk,
            epsilon_low=options.epsilon_low,
            epsilon_high=options.epsilon_high,
            loss_type=options.loss_type,
            max_completion_length=mask.shape[-1],
            temperature=options.temperature,
        )
        return fused(
            hidden.flatten(0, 1),
            weight,
            token_ids.flatten(0, 1),
            mask.flatten(0, 1),
            advantages.flatten(),
            old_per_token_logps=None if old is None else old.flatten(0, 1),
        )[0]

    return loss


def _liger_full_logits(device: torch.device, options: LossOptions) -> GroupLoss:
    """Liger's triton_grpo_loss on the logits of all tokens, and of one more a completion, which it wants and skips."""
    if device.type != "cuda":
        raise MissingPeer("triton_grpo_loss runs on CUDA only")
    liger = imported("liger_kernel.transformers.grpo_loss", "liger-kernel>=0.8.5")

    def loss(
        hidden: Tensor, weight: Tensor, token_ids: Tensor, mask: Tensor, advantages: Tensor, old: Tensor | None
    ) -> Tensor:
        logits = linear(pad(hidden, (0, 0, 0, 1)).flatten(0, 1), weight)  # [B * G, L + 1, V]
        return liger.triton_grpo_loss(
            logits,
            None if old is None else old.flatten(0, 1),
            None,
            token_ids.flatten(0, 1),
            advantages.flatten(),
            mask.flatten(0, 1),
            temperature=options.temperature,
            beta=0.0,
            eps_low=options.epsilon_low,
            eps_high=options.epsilon_high,
            loss_type=options.loss_type,
            max_completion_length=mask.shape[-1],
            reduce=True,
        )[0]

    return loss
