"""The loss of groups: the policy's forward over their tokens, then the grouped policy-gradient loss.

Groups whose rewards are all equal carry no gradient and, without KL, are left out of the forward. The loss is still
divided by the whole batch's count, so leaving them out is exact.
"""

from __future__ import annotations

from collections.abc import Callable

from tawin_kernels import GRPOLoss, tawin_grpo_loss
from tawin_kernels.ops.loss.types import LOSS_KINDS
from torch import Tensor, nn

from ..config import GRPOConfig
from ..config.training import TokenCount
from ..model.backbone import backbone
from ..model.token_tree import completion_states
from ..run.phases import phase
from ..search.completions import scored_tokens, sequence_log_probs
from .groups import Groups


def group_loss(
    model: nn.Module,
    reference: Callable[[Groups], Tensor] | None,
    groups: Groups,
    config: GRPOConfig,
    denominator: float,
    old_log_probs: Tensor | None = None,
) -> GRPOLoss:
    """The loss of some groups of a batch, divided by the whole batch's `denominator`.

    `reference` gives the reference model's log-probs [B, G, L]; needed where beta > 0. `old_log_probs` [B, G, L] are
    those of the policy that the ratio compares with; None: of this one, before the update.
    """
    parts = backbone(model)
    ref_log_probs = None
    if reference is not None:
        with phase("reference"):
            ref_log_probs = reference(groups)
    nodes = groups.nodes
    with phase("policy_forward"):
        # The log p of a forced token is 0 whatever state it is given.
        scored = scored_tokens(groups.token_ids, groups.trie, nodes)
        states, rows = completion_states(
            parts, groups.input_ids, groups.attention_mask, groups.token_ids, groups.prompt, scored=scored
        )
        weight, bias = parts.head_in(states.dtype)
    with phase("loss"):
        return tawin_grpo_loss(
            states,
            weight,
            groups.token_ids,
            groups.counted(config.count),
            groups.rewards,
            groups.scores,
            tawin=config.tawin.kernel_options() if config.tawin.enabled else None,
            old_log_probs=old_log_probs,
            ref_log_probs=ref_log_probs,
            loss_type=config.loss_type,
            epsilon_low=config.epsilon_low,
            epsilon_high=config.epsilon_high,
            beta=config.beta,
            bias=bias,
            normalize_std=config.normalize_std,
            denominator=denominator,
            rows=rows,
            normalizer=groups.normalizer,
            trie=groups.trie,
            nodes=nodes,
            all_log_probs=False,
        )


def loss_denominator(groups: list[Groups], loss_type: str, count: TokenCount = "tokens") -> float:
    """What the summed loss of all `groups` of a batch is divided by: sequences, tokens, or sequences x max length."""
    sequences, tokens = sum(g.valid.sum() for g in groups), sum(g.counted(count).sum() for g in groups)
    return float(LOSS_KINDS[loss_type].denominator(sequences, tokens, groups[0].token_ids.shape[2]))


def completion_log_probs(model: nn.Module, groups: Groups) -> Tensor:
    """Log p of every completion token under `model`, without gradient: fp32 [B, G, L], 0 at padding."""
    return sequence_log_probs(
        model,
        groups.input_ids,
        groups.attention_mask,
        groups.token_ids,
        normalizer=groups.normalizer,
        trie=groups.trie,
    )
