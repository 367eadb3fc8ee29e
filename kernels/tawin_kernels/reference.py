"""Every op in plain PyTorch: the specification of the kernels, and what runs on the CPU.

The mathematics is that of arXiv 2604.22504 in the notation B prompts, G completions a prompt, L tokens, H hidden size,
V vocabulary. The functions have the signatures of the public ops but `impl`, and check their arguments as those do.
Floating inputs are accumulated in fp32, and in fp64 where they are fp64.
"""

from __future__ import annotations

import math

import torch

from .arguments import IGNORED_TOKEN
from .checks import (
    check_beam_step,
    check_group_advantages,
    check_grpo_loss,
    check_linear_log_probs,
    check_tawin_grpo_loss,
    check_tawin_weights,
)
from .lm_head import accumulation_dtype, child_log_probs, row_log_probs
from .records import BeamStep, GRPOLoss, LossType, Normalizer, TAWin
from .top_k import top_k_stable
from .trie import ItemTrie


@torch.no_grad()
def beam_step(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    trie: ItemTrie,
    nodes: torch.Tensor,
    scores: torch.Tensor,
    beam_width: int,
    *,
    normalizer: Normalizer = "vocab",
    temperature: float = 1.0,
    bias: torch.Tensor | None = None,
    check_values: bool | None = None,
) -> BeamStep:
    """The best beam_width of all children of all live beams; see `tawin_kernels.beam_step`."""
    check_beam_step(
        hidden, lm_head_weight, trie, nodes, scores, beam_width, normalizer, temperature, bias, check_values
    )
    B = len(hidden)
    dtype = accumulation_dtype(hidden)
    known = nodes.clamp(min=0)
    first_edges = trie.child_offsets[known].long()  # [B, W]
    counts = trie.child_offsets[known + 1].long() - first_edges  # [B, W]
    counts = counts.masked_fill((nodes < 0) | (scores == -math.inf), 0)

    # The rows are the beams with anything to expand; the hidden state of any other beam is never read.
    prompts, beams = counts.nonzero(as_tuple=True)  # [rows]
    counts = counts[prompts, beams]
    rows = torch.arange(len(counts), device=hidden.device).repeat_interleave(counts)  # [candidates]
    begins = counts.cumsum(0) - counts
    edges = torch.arange(len(rows), device=hidden.device) + (first_edges[prompts, beams] - begins)[rows]
    tokens = trie.edge_tokens[edges].long()  # [candidates]
    log_probs = child_log_probs(hidden[prompts, beams], lm_head_weight, bias, tokens, counts, temperature, normalizer)
    candidate_scores = scores[prompts, beams].to(dtype)[rows] + log_probs

    # One row a prompt. Candidates stand in the order of beam, then edge, which is the order of ties.
    per_prompt = counts.new_zeros(B).index_add(0, prompts, counts)
    width = int(per_prompt.max()) if B > 0 else 0
    padded = candidate_scores.new_full((B, width), -math.inf)
    is_candidate = torch.arange(width, device=hidden.device) < per_prompt[:, None]  # [B, width]
    padded[is_candidate] = candidate_scores.masked_fill(candidate_scores.isnan(), -math.inf)
    best, order = top_k_stable(padded, beam_width)  # [B, beam_width]
    missing = best == -math.inf
    chosen = (per_prompt.cumsum(0)[:, None] - per_prompt[:, None] + order).masked_fill(missing, 0)
    if len(rows) == 0:
        rows, edges, tokens, beams = (nodes.new_zeros(1) for _ in range(4))
    return BeamStep(
        scores=best,
        tokens=tokens[chosen].masked_fill(missing, -1),
        nodes=(edges[chosen] + 1).masked_fill(missing, -1),
        parents=beams[rows[chosen]].masked_fill(missing, 0),
    )


def linear_log_probs(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    temperature: float = 1.0,
    bias: torch.Tensor | None = None,
    check_values: bool | None = None,
) -> torch.Tensor:
    """log softmax((hidden @ lm_head_weight.T + bias) / temperature) at token_ids (`tawin_kernels.linear_log_probs`)."""
    check_linear_log_probs(hidden, lm_head_weight, token_ids, temperature, bias, check_values)
    rows = (token_ids.reshape(-1) != IGNORED_TOKEN).nonzero().squeeze(1)
    log_probs = row_log_probs(
        hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows),
        lm_head_weight,
        bias,
        token_ids.reshape(-1)[rows],
        temperature,
    )
    zeros = torch.zeros(token_ids.numel(), dtype=log_probs.dtype, device=hidden.device)
    return zeros.index_copy(0, rows, log_probs).view(token_ids.shape)


@torch.no_grad()
def tawin_weights(
    scores: torch.Tensor, negatives: torch.Tensor, tawin: TAWin, *, check_values: bool | None = None
) -> torch.Tensor:
    """The weights w of the negatives around the anchor rank; see `tawin_kernels.tawin_weights`."""
    check_tawin_weights(scores, negatives, tawin, check_values)
    # [B, G], in fp64 from here on: the tensors are small, and a rounded rank distance over a small temperature is not.
    order = (scores + 0.0).argsort(dim=-1, descending=True, stable=True)
    ranks_in_order = negatives.gather(-1, order).double().cumsum(-1) - 1
    ranks = torch.empty_like(ranks_in_order).scatter(-1, order, ranks_in_order)  # sigma
    sizes = negatives.sum(-1, keepdim=True).double()  # |N|, [B, 1]
    distances = -(
        _transform(ranks, sizes, tawin) - _transform(torch.full_like(sizes, tawin.anchor), sizes, tawin)
    ).abs()
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
    return torch.where(is_weighted, weights, 1.0).to(accumulation_dtype(scores))


def _transform(ranks: torch.Tensor, sizes: torch.Tensor, tawin: TAWin) -> torch.Tensor:
    """phi. ranks fp64 [B, G] or [B, 1]; sizes fp64 [B, 1], the number of negatives."""
    if tawin.rank_transform == "log2":
        return (1.0 + ranks.clamp(min=0.0)).log2()
    if tawin.rank_transform == "fraction":
        return ranks / sizes.clamp(min=1.0)
    return ranks


@torch.no_grad()
def group_advantages(
    rewards: torch.Tensor,
    scores: torch.Tensor | None = None,
    *,
    tawin: TAWin | None = None,
    normalize_std: bool = True,
    eps: float = 1e-4,
    valid: torch.Tensor | None = None,
    check_values: bool | None = None,
) -> torch.Tensor:
    """A'_m = w_m (r_m - mean) / (std + eps) within each group; see `tawin_kernels.group_advantages`."""
    check_group_advantages(rewards, scores, tawin, normalize_std, eps, valid, check_values)
    dtype = accumulation_dtype(rewards)
    if valid is None:
        valid = torch.ones_like(rewards, dtype=torch.bool)
    rewards = rewards.to(dtype).masked_fill(~valid, 0.0)  # [B, G]
    counts = valid.sum(-1, keepdim=True)  # [B, 1]
    centered = (rewards - rewards.sum(-1, keepdim=True) / counts.clamp(min=1)).masked_fill(~valid, 0.0)
    advantages = centered
    if normalize_std:
        std = (centered.square().sum(-1, keepdim=True) / (counts - 1).clamp(min=1)).sqrt()
        advantages = centered / (std + eps)
    if tawin is not None:
        assert scores is not None
        negatives = valid & (rewards <= 0)
        weights = tawin_weights(scores.double().masked_fill(~valid, -math.inf), negatives, tawin, check_values=False)
        advantages = advantages * weights.to(dtype)

    # The same reward for every valid completion teaches nothing: exactly 0, free of the rounding of the mean.
    largest = rewards.masked_fill(~valid, -math.inf).amax(-1, keepdim=True)
    smallest = rewards.masked_fill(~valid, math.inf).amin(-1, keepdim=True)
    return advantages.masked_fill(~valid | (largest <= smallest), 0.0)


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
    check_values: bool | None = None,
) -> GRPOLoss:
    """The clipped surrogate of a batch of groups, with its KL; see `tawin_kernels.grpo_loss`."""
    check_grpo_loss(
        log_probs,
        mask,
        advantages,
        old_log_probs,
        ref_log_probs,
        loss_type,
        epsilon_low,
        epsilon_high,
        beta,
        valid,
        denominator,
        check_values,
    )
    dtype = accumulation_dtype(log_probs)
    if valid is None:
        valid = mask.any(-1)  # [B, G]
    mask = mask & valid[..., None]  # [B, G, L]
    lengths = mask.sum(-1)  # [B, G]
    num_tokens = lengths.sum().clamp(min=1)
    log_probs = log_probs.to(dtype).masked_fill(~mask, 0.0)
    if old_log_probs is None:
        old_log_probs = log_probs.detach()
    old_log_probs = old_log_probs.to(dtype).masked_fill(~mask, 0.0)
    advantages = advantages.detach().to(dtype).masked_fill(~valid, 0.0)  # [B, G]

    log_ratio = log_probs - old_log_probs
    if loss_type == "gspo":
        log_ratio = (log_ratio.sum(-1) / lengths.clamp(min=1))[..., None].expand_as(log_ratio)
    ratio = log_ratio.exp()  # rho, [B, G, L]
    advantage = advantages[..., None]
    clipped_ratio = ratio.clamp(1.0 - epsilon_low, 1.0 + epsilon_high)
    token_losses = -torch.minimum(ratio * advantage, clipped_ratio * advantage)
    is_clipped = ((ratio < 1.0 - epsilon_low) & (advantage < 0)) | ((ratio > 1.0 + epsilon_high) & (advantage > 0))

    kl = torch.zeros((), dtype=dtype, device=log_probs.device)
    if ref_log_probs is not None:
        distance = ref_log_probs.to(dtype).masked_fill(~mask, 0.0) - log_probs
        token_kl = distance.exp() - distance - 1.0  # k3
        kl = token_kl.detach().masked_fill(~mask, 0.0).sum() / num_tokens
        if beta > 0:
            token_losses = token_losses + beta * token_kl

    token_losses = token_losses.masked_fill(~mask, 0.0)
    if loss_type in ("grpo", "gspo"):
        total = (token_losses.sum(-1) / lengths.clamp(min=1)).sum()
        counted = valid.sum()
    elif loss_type == "dapo":
        total = token_losses.sum()
        counted = num_tokens
    else:
        total = token_losses.sum()
        counted = valid.sum() * mask.shape[-1]
    return GRPOLoss(
        loss=total / (counted.clamp(min=1) if denominator is None else denominator),
        log_probs=log_probs.detach(),
        advantages=advantages,
        kl=kl,
        clip_fraction=(is_clipped & mask).sum().to(dtype) / num_tokens,
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
    check_values: bool | None = None,
) -> GRPOLoss:
    """From hidden states and rewards to the loss; see `tawin_kernels.tawin_grpo_loss`."""
    check_tawin_grpo_loss(
        hidden,
        lm_head_weight,
        token_ids,
        mask,
        rewards,
        scores,
        tawin,
        old_log_probs,
        ref_log_probs,
        loss_type,
        epsilon_low,
        epsilon_high,
        beta,
        temperature,
        bias,
        normalize_std,
        eps,
        valid,
        denominator,
        check_values,
    )
    mask = mask & (token_ids != IGNORED_TOKEN)
    if valid is None:
        valid = mask.any(-1)
    mask = mask & valid[..., None]  # [B, G, L]
    advantages = group_advantages(
        rewards.to(torch.promote_types(rewards.dtype, accumulation_dtype(hidden))),
        scores,
        tawin=tawin,
        normalize_std=normalize_std,
        eps=eps,
        valid=valid,
        check_values=False,
    )

    # Without a KL, a completion of advantage 0 has no gradient: its log-probs are wanted, their graph is not.
    trained = mask if beta > 0 else mask & (advantages != 0)[..., None]
    log_probs = linear_log_probs(
        hidden,
        lm_head_weight,
        token_ids.masked_fill(~trained, IGNORED_TOKEN),
        temperature=temperature,
        bias=bias,
        check_values=False,
    )
    with torch.no_grad():
        rest = linear_log_probs(
            hidden,
            lm_head_weight,
            token_ids.masked_fill(~mask | trained, IGNORED_TOKEN),
            temperature=temperature,
            bias=bias,
            check_values=False,
        )
    return grpo_loss(
        log_probs + rest,
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
        check_values=False,
    )
