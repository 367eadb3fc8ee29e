"""Every op in plain PyTorch: the specification of the kernels, and what runs on the CPU.

The mathematics is that of arXiv 2604.22504 in the notation B prompts, G completions a prompt, L tokens, H hidden size,
V vocabulary. The functions have the signatures of the public ops and check their arguments as those do, once, where
they enter; `impl` is "auto" or "reference". Floating inputs are accumulated in fp32, and in fp64 where they are fp64;
advantages always in fp64.
"""

from __future__ import annotations

import math

import torch

from .arguments import IGNORED_TOKEN, Impl, require_reference
from .checks import (
    check_beam_step,
    check_group_advantages,
    check_grpo_loss,
    check_linear_log_probs,
    check_tawin_grpo_loss,
    check_tawin_weights,
)
from .ops.advantage.weights import relative_advantages, window_weights
from .ops.log_prob.lm_head import (
    accumulation_dtype,
    child_log_probs,
    shared_child_log_probs,
    token_entropies,
    token_log_probs,
)
from .ops.loss.types import LOSS_KINDS, ImportanceLevel, LossType
from .top_k import top_k_stable
from .trie import ItemTrie
from .types import BeamStep, GRPOLoss, Normalizer, TAWin

# exp overflows fp32 from 88 on, and infinity times an advantage or a gradient of 0 is NaN. A larger log-ratio counts as
# this one, without a gradient: a positive advantage is clipped there anyway, and a step of e^80 is of no use to anyone.
_MAX_LOG_RATIO = 80.0


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
    impl: Impl = "auto",
    check_values: bool | None = None,
) -> BeamStep:
    """The best beam_width of all children of all live beams; see `tawin_kernels.ops.beam_step`."""
    require_reference("beam_step", impl)
    check_beam_step(
        hidden, lm_head_weight, trie, nodes, scores, beam_width, normalizer, temperature, bias, check_values
    )
    B = len(hidden)
    dtype = accumulation_dtype(hidden)
    if nodes.shape[1] == 1 and B > 0 and bool((nodes == nodes[0]).all()) and bool((scores > -math.inf).all()):
        return _step_from_one_node(
            hidden[:, 0], lm_head_weight, trie, int(nodes[0]), scores, beam_width, normalizer, temperature, bias
        )
    known = nodes.clamp(min=0)
    counts = (trie.child_offsets[known + 1] - trie.child_offsets[known]).long()  # [B, W]
    counts = counts.masked_fill((nodes < 0) | (scores == -math.inf), 0)

    # The rows are the beams with anything to expand; the hidden state of any other beam is never read.
    prompts, beams = counts.nonzero(as_tuple=True)  # [rows]
    counts = counts[prompts, beams]
    rows, edges = trie.edges_below(nodes[prompts, beams])  # [candidates]
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


def _step_from_one_node(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    trie: ItemTrie,
    node: int,
    scores: torch.Tensor,
    beam_width: int,
    normalizer: Normalizer,
    temperature: float,
    bias: torch.Tensor | None,
) -> BeamStep:
    """`beam_step` of one live beam a prompt, all at one node, as a search begins: the candidates are a matrix.

    hidden [B, H], scores [B, 1]. With one token an item the root has the whole catalogue as children.
    """
    edges = trie.edges_below(torch.tensor([node], device=hidden.device))[1] if node >= 0 else None
    if edges is None or len(edges) == 0:
        missing = scores.new_full((len(hidden), beam_width), -1, dtype=torch.int64)
        return BeamStep(scores.new_full(missing.shape, -math.inf), missing, missing.clone(), torch.zeros_like(missing))
    tokens = trie.edge_tokens[edges].long()  # [C]
    log_probs = shared_child_log_probs(hidden, lm_head_weight, bias, tokens, temperature, normalizer)  # [B, C]
    candidates = scores.to(log_probs.dtype) + log_probs
    best, order = top_k_stable(candidates.masked_fill_(candidates.isnan(), -math.inf), beam_width)  # [B, beam_width]
    missing = best == -math.inf
    return BeamStep(
        scores=best,
        tokens=tokens[order].masked_fill(missing, -1),
        nodes=(edges[order] + 1).masked_fill(missing, -1),
        parents=torch.zeros_like(order),
    )


def linear_log_probs(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    temperature: float = 1.0,
    bias: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    normalizer: Normalizer = "vocab",
    trie: ItemTrie | None = None,
    nodes: torch.Tensor | None = None,
    with_entropy: bool = False,
    impl: Impl = "auto",
    check_values: bool | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """log softmax((hidden @ lm_head_weight.T + bias) / temperature) at token_ids (`tawin_kernels.linear_log_probs`)."""
    require_reference("linear_log_probs", impl)
    check_linear_log_probs(
        hidden,
        lm_head_weight,
        token_ids,
        temperature,
        bias,
        rows,
        normalizer,
        trie,
        nodes,
        with_entropy,
        check_values,
    )
    log_probs = token_log_probs(
        hidden,
        lm_head_weight,
        bias,
        token_ids,
        temperature,
        rows=rows,
        normalizer=normalizer,
        trie=trie,
        nodes=nodes,
    )
    if not with_entropy:
        return log_probs
    return log_probs, token_entropies(hidden, lm_head_weight, bias, token_ids, temperature, rows, trie, nodes)


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
    require_reference("tawin_weights", impl)
    check_tawin_weights(scores, negatives, tawin, check_values)
    return window_weights(scores, negatives, tawin).to(accumulation_dtype(scores))


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
    require_reference("group_advantages", impl)
    check_group_advantages(rewards, scores, tawin, normalize_std, eps, valid, check_values)
    if valid is None:
        valid = torch.ones_like(rewards, dtype=torch.bool)
    return relative_advantages(rewards.to(accumulation_dtype(rewards)), scores, valid, tawin, normalize_std, eps)


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
    require_reference("grpo_loss", impl)
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
        importance_level,
        check_values,
    )
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


def tawin_grpo_loss(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    token_ids: torch.Tensor,
    mask: torch.Tensor,
    rewards: torch.Tensor | None = None,
    scores: torch.Tensor | None = None,
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
    require_reference("tawin_grpo_loss", impl)
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
        rows,
        normalizer,
        trie,
        nodes,
        all_log_probs,
        importance_level,
        advantages,
        check_values,
    )
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
