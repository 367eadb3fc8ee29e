"""The group losses in plain PyTorch."""

from __future__ import annotations

import torch

from ...arguments import IGNORED_TOKEN, Impl
from ...checks import check_grpo_loss, check_tawin_grpo_loss
from ...dispatch import reference_op
from ...trie import ItemTrie
from ...types import GRPOLoss, Normalizer, TAWin
from ..advantage.weights import relative_advantages
from ..log_prob.lm_head import accumulation_dtype, token_log_probs
from .types import LOSS_KINDS, ImportanceLevel, LossType

# exp overflows fp32 from 88 on, and infinity times an advantage or a gradient of 0 is NaN. A larger log-ratio counts as
# this one, without a gradient: a positive advantage is clipped there anyway, and a step of e^80 is of no use to anyone.
_MAX_LOG_RATIO = 80.0


@reference_op(check_grpo_loss)
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
    """The clipped surrogate of a batch of groups, with its KL; see `tawin_kernels.ops.loss.grpo`."""
    return _group_loss(
        log_probs,
        mask,
        mask.any(-1) if valid is None else valid,
        advantages,
        old_log_probs,
        ref_log_probs,
        loss_type,
        epsilon_low,
        epsilon_high,
        beta,
        denominator,
        importance_level,
    )


@reference_op(check_tawin_grpo_loss, may_lack=("rewards", "scores"))
def tawin_grpo_loss(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    token_ids: torch.Tensor,
    mask: torch.Tensor,
    rewards: torch.Tensor | None,
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
    rows: torch.Tensor | None = None,
    normalizer: Normalizer = "vocab",
    trie: ItemTrie | None = None,
    nodes: torch.Tensor | None = None,
    all_log_probs: bool = True,
    importance_level: ImportanceLevel = "token",
    advantages: torch.Tensor | None = None,
    impl: Impl = "auto",
    check_values: bool | None = None,
) -> GRPOLoss:
    """From hidden states and rewards to the loss; see `tawin_kernels.ops.loss.tawin_grpo`."""
    mask = mask & (token_ids != IGNORED_TOKEN)
    if valid is None:
        valid = mask.any(-1)
    mask = mask & valid[..., None]  # [B, G, L]
    with torch.no_grad():
        if advantages is None:
            assert rewards is not None  # checked
            dtype = torch.promote_types(accumulation_dtype(rewards), accumulation_dtype(hidden))
            advantages = relative_advantages(rewards.to(dtype), scores, valid, tawin, normalize_std, eps)

    def log_probs_of(wanted: torch.Tensor) -> torch.Tensor:
        ids = token_ids.masked_fill(~wanted, IGNORED_TOKEN)
        return token_log_probs(
            hidden, lm_head_weight, bias, ids, temperature, rows=rows, normalizer=normalizer, trie=trie, nodes=nodes
        )

    # Without a KL, a completion of advantage 0 adds nothing to the loss: its log-probs are computed, without a graph,
    # only for whoever asks for them.
    trained = mask if beta > 0 else mask & (advantages != 0)[..., None]
    log_probs = log_probs_of(trained)
    if all_log_probs or ref_log_probs is not None:
        with torch.no_grad():
            log_probs_of_others = log_probs_of(mask & ~trained)
        log_probs = log_probs + log_probs_of_others
    return _group_loss(
        log_probs,
        mask,
        valid,
        advantages,
        old_log_probs,
        ref_log_probs,
        loss_type,
        epsilon_low,
        epsilon_high,
        beta,
        denominator,
        importance_level,
    )


def _group_loss(
    log_probs: torch.Tensor,
    mask: torch.Tensor,
    valid: torch.Tensor,
    advantages: torch.Tensor,
    old_log_probs: torch.Tensor | None,
    ref_log_probs: torch.Tensor | None,
    loss_type: LossType,
    epsilon_low: float,
    epsilon_high: float,
    beta: float,
    denominator: float | torch.Tensor | None,
    importance_level: ImportanceLevel,
) -> GRPOLoss:
    """`grpo_loss` of arguments that have been checked."""
    kind, dtype = LOSS_KINDS[loss_type], accumulation_dtype(log_probs)
    mask = mask & valid[..., None]  # [B, G, L]
    lengths = mask.sum(-1)  # [B, G]
    num_tokens = lengths.sum().clamp(min=1)
    log_probs = log_probs.to(dtype).masked_fill(~mask, 0.0)
    old_log_probs = (log_probs if old_log_probs is None else old_log_probs).detach().to(dtype).masked_fill(~mask, 0.0)
    advantages = advantages.detach().to(dtype).masked_fill(~valid, 0.0)  # [B, G]

    log_ratio = log_probs - old_log_probs
    if kind.sequence_level or importance_level == "sequence":
        log_ratio = (log_ratio.sum(-1) / lengths.clamp(min=1))[..., None].expand_as(log_ratio)
    ratio = _at_most(log_ratio, _MAX_LOG_RATIO).exp()  # rho, [B, G, L]
    advantage = advantages[..., None]
    if kind.caps_ratio:  # the ratio is a constant weight of the policy gradient, capped but never switched off
        token_losses = -ratio.detach().clamp(max=epsilon_high) * advantage * log_probs
        is_clipped = (ratio > epsilon_high) & (advantage > 0)
    else:
        lowest, highest = 1.0 - epsilon_low, 1.0 + epsilon_high
        # The lesser of rho A and clip(rho) A. Written out, as the gradient of clamp and minimum where their arguments
        # meet is PyTorch's choice, and 2.14 made another one: a ratio at a bound is not clipped.
        is_clipped = ((ratio < lowest) & (advantage < 0)) | ((ratio > highest) & (advantage > 0))
        token_losses = -torch.where(is_clipped, ratio.detach().clamp(lowest, highest), ratio) * advantage

    kl = torch.zeros((), dtype=dtype, device=log_probs.device)
    if ref_log_probs is not None:
        distance = ref_log_probs.detach().to(dtype).masked_fill(~mask, 0.0) - log_probs
        distance = _at_most(distance, _MAX_LOG_RATIO)
        token_kl = distance.exp() - distance - 1.0  # k3
        kl = token_kl.detach().masked_fill(~mask, 0.0).sum() / num_tokens
        if beta > 0:
            token_losses = token_losses + beta * token_kl

    token_losses = token_losses.masked_fill(~mask, 0.0)
    total = token_losses.sum()
    if kind.mean_over_tokens:
        total = (token_losses.sum(-1) / lengths.clamp(min=1)).sum()
    if denominator is None:
        denominator = kind.denominator(valid.sum(), num_tokens, mask.shape[-1]).clamp(min=1)
    elif isinstance(denominator, torch.Tensor):
        denominator = denominator.detach()
    return GRPOLoss(
        loss=(total / denominator).to(dtype),  # a denominator in fp64 would make it fp64
        log_probs=log_probs.detach(),
        advantages=advantages,
        kl=kl,
        clip_fraction=(is_clipped & mask).sum().to(dtype) / num_tokens,
    )


def _at_most(values: torch.Tensor, bound: float) -> torch.Tensor:
    """The values up to the bound, which itself has a gradient: that of `clamp` depends on PyTorch's version."""
    return values.where(~(values > bound), bound)
