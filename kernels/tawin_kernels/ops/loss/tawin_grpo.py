"""From hidden states and rewards to the loss: log-probs, TAWin advantages and the group loss.

Without a KL only completions with an advantage add to the loss, and in recommendation most groups have none. Whoever
does not need the others' log-probs (all_log_probs=False) has the advantages come first, in a launch of their own, and
the tokens of the others are -100 to the LM head. Else the launch of the loss makes the advantages itself, and the
backward pass leaves out what has no coefficient. Where moreover the ratios are 1 (no old_log_probs, ratios of tokens)
and the head is frozen, log-probs and gradient are made in one pass (`one_pass`), which waits for the device to
count the rows. The parts say what they cost and where they wait; between them stand a mask [B, G, L] and token ids
[B, G, L], 9 bytes a token, and nothing else waits.

Knows nothing of models or optimizers; advantages are constants for the gradient.
"""

from __future__ import annotations

import torch

from ...arguments import IGNORED_TOKEN, Impl
from ...autograd import is_transformed
from ...dispatch import op
from ...trie import ItemTrie
from ...types import GRPOLoss, Normalizer, TAWin
from ..advantage import require_small_groups
from ..advantage.kernels import MAX_GROUP, GroupRewards, triton_group_advantages
from ..log_prob import triton_log_probs
from ..log_prob.one_pass import triton_one_pass, with_known_gradient
from . import reference
from .kernels import LossOptions, triton_grpo_loss
from .types import ImportanceLevel, LossType


@op(reference.tawin_grpo_loss, multiplies=True, may_lack=("rewards", "scores"))
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
    """From hidden states and rewards to the loss: `linear_log_probs`, `group_advantages` and `grpo_loss` in one.

    hidden: [B, G, L, H] fp32, bf16, fp16 (fp64 too on the CPU), the state that predicts each completion token; [R, H]
        with rows.
    lm_head_weight: [V, H], dtype of hidden. bias: [V], dtype of hidden, or None.
    token_ids: int64 [B, G, L], the completions. mask: bool [B, G, L], the tokens that exist. Where the mask is False or
        the token is -100 nothing is read.
    rewards: [B, G] floating. scores: [B, G] floating, what negatives are ranked by.
    tawin: the window of negatives; None: plain GRPO advantages, and scores may be None.
    advantages: [B, G] floating, one's own in place of what rewards, scores, tawin, normalize_std and eps would make;
        rewards and scores are None then, or left out. Where a completion is not valid it counts as 0.
    temperature: logits are divided by it, at least 1e-30.
    normalize_std, eps: as in `group_advantages`; impl="triton" takes groups of at most 512.
    rows: int64 [B, G, L] in [0, R), normalizer, trie, nodes: int64 [B, G, L]: as in `linear_log_probs`.
    all_log_probs: False: with beta 0 and no ref_log_probs, completions without an advantage (in a dead group, all of
        them) never reach the LM head, and log_probs is 0 there. Loss and gradients are the same. Trainers want that.
        With old_log_probs None, ratios of tokens and a frozen head, Triton then makes log-probs and gradient in one
        pass: a third less work, and the forward pass waits for the device to count the rows.
    The other arguments, the result and the errors: as in `grpo_loss`.

    Call backward outside of an autocast region, and for second derivatives ask for impl="reference": `linear_log_probs`
    says why.
    """
    if rewards is not None:
        require_small_groups("rewards", rewards, impl)
    mask = mask & (token_ids != IGNORED_TOKEN)
    valid = mask.any(-1) if valid is None else valid
    wanted = mask & valid[..., None]  # [B, G, L]
    options = LossOptions(loss_type, importance_level, epsilon_low, epsilon_high, beta)
    leaves_out = beta == 0 and ref_log_probs is None and not all_log_probs
    source: torch.Tensor | GroupRewards  # fp32 [B, G] where the advantages are known, or wanted before the loss
    if advantages is not None:
        source = advantages.detach().float().masked_fill(~valid, 0.0)
    else:
        assert rewards is not None  # checked
        source = GroupRewards(rewards, scores, tawin, normalize_std, eps)
        if leaves_out or rewards.shape[1] > MAX_GROUP:
            with torch.no_grad():
                source = triton_group_advantages(source, valid)
    if leaves_out:
        assert isinstance(source, torch.Tensor)
        wanted &= (source != 0)[..., None]
    tokens = token_ids.masked_fill(~wanted, IGNORED_TOKEN)
    is_frozen = not lm_head_weight.requires_grad and (bias is None or not bias.requires_grad)
    has_own_ratios = old_log_probs is None and not options.sequence_level
    needs_hidden = hidden.requires_grad and torch.is_grad_enabled() and not is_transformed(hidden)
    if leaves_out and has_own_ratios and is_frozen and needs_hidden and normalizer == "vocab":
        # d loss / d log p does not depend on the log-probs, so they and the gradient are made together.
        with torch.enable_grad():
            unknown = torch.zeros(tokens.shape, dtype=torch.float32, device=hidden.device, requires_grad=True)
            loss = triton_grpo_loss(unknown, mask, source, valid, None, None, denominator, options).loss
            (gradient,) = torch.autograd.grad(loss, unknown)
        log_probs, of_hidden = triton_one_pass(hidden, lm_head_weight, bias, tokens, temperature, rows, gradient)
        result = triton_grpo_loss(log_probs, mask, source, valid, None, None, denominator, options)
        return result._replace(loss=with_known_gradient(hidden, result.loss, of_hidden))
    log_probs = triton_log_probs(
        hidden,
        lm_head_weight,
        bias,
        tokens,
        temperature,
        rows=rows,
        normalizer=normalizer,
        trie=trie,
        nodes=nodes,
    )
    return triton_grpo_loss(log_probs, mask, source, valid, old_log_probs, ref_log_probs, denominator, options)
