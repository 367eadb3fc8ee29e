"""Groups and their loss: completions and rewards for a batch of prompts, then the grouped policy-gradient loss.

A group is the G completions of one prompt. Reward is 1 for the sequence of a target item, decided by the trie node,
never by text; other completions have 0, or less with the ranking reward. Groups whose rewards are all equal carry no
gradient and, without KL, are left out of the forward; the loss is still divided by the whole batch's count, so leaving
them out is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from tawin_kernels import GRPOLoss, ItemTrie, tawin_grpo_loss
from tawin_kernels.types import Normalizer
from torch import Tensor, nn

from ..catalog.catalog import Catalog
from ..config import GRPOConfig
from ..model.backbone import backbone
from ..model.policy import evaluating
from ..model.token_tree import completion_states
from ..model.tree_attention import Prompt, prefill
from ..run.phases import phase
from ..search.completions import (
    Sequences,
    beam_sequences,
    draw_uniforms,
    prefix_nodes,
    random_sequences,
    sample_sequences,
    score_sequences,
    sequence_log_probs,
)


@dataclass(frozen=True)
class Groups:
    """A batch of prompts with their completions."""

    input_ids: Tensor  # int64 [B, P], left-padded
    attention_mask: Tensor  # int64 [B, P]
    token_ids: Tensor  # int64 [B, G, L], -100 = padding or missing
    rewards: Tensor  # fp32 [B, G]
    scores: Tensor  # fp32 [B, G], summed log p of each completion
    hits: Tensor  # bool [B], the rollout itself found a target
    trie: ItemTrie | None = None  # log p of a completion is a softmax over its children; None: over the vocabulary
    prompt: Prompt | None = None  # the rollout's prefill, where the policy's forward goes on from it
    users: Tensor | None = None  # int64 [B], whose prompts they are: for reports

    @property
    def mask(self) -> Tensor:
        """bool [B, G, L], the tokens that exist."""
        return self.token_ids >= 0

    @property
    def normalizer(self) -> Normalizer:
        """What the scores are a softmax over, and so every log-prob that is compared with them."""
        return "vocab" if self.trie is None else "trie"

    @property
    def nodes(self) -> Tensor | None:
        """int64 [B, G, L], the node of the trie before each token; None without a trie."""
        return None if self.trie is None else prefix_nodes(self.trie, self.token_ids)

    @property
    def valid(self) -> Tensor:
        """bool [B, G], the completions that exist."""
        return self.mask.any(-1)

    @property
    def live(self) -> Tensor:
        """bool [B]: groups with unequal rewards, hence with a gradient."""
        highest = self.rewards.masked_fill(~self.valid, -torch.inf).amax(1)
        lowest = self.rewards.masked_fill(~self.valid, torch.inf).amin(1)
        return highest > lowest

    def without_rewards(self) -> Groups:
        """The same with rewards of 0, hence without a gradient."""
        return replace(self, rewards=torch.zeros_like(self.rewards))

    def take(self, index: Tensor) -> Groups:
        """The groups at `index`, prompts cut to the longest one left; without the rollout's prefill."""
        attention_mask = self.attention_mask[index]
        start = int((~attention_mask.bool()).long().cumprod(1).sum(1).min()) if len(index) else 0
        return Groups(
            self.input_ids[index, start:],
            attention_mask[:, start:],
            self.token_ids[index],
            self.rewards[index],
            self.scores[index],
            self.hits[index],
            self.trie,
            users=None if self.users is None else self.users[index],
        )


def roll_out(
    model: nn.Module,
    catalog: Catalog,
    input_ids: Tensor,
    attention_mask: Tensor,
    targets: Tensor,
    config: GRPOConfig,
    generator: torch.Generator,
    *,
    shares_prompts: bool = False,
    part: slice = slice(None),
    whole: int | None = None,
) -> Groups:
    """Completions, scores and rewards for a batch of prompts.

    Args:
        model: the policy; put into eval mode for the rollout and back afterwards.
        input_ids, attention_mask: int64 [B, P], left-padded prompts.
        targets: int64 [B], the item that each user took next; or [B, T], the T that each took next, in order. A row may
            hold an item more than once.
        generator: of random and sampled completions.
        shares_prompts: keep what the backward pass needs of the prompts, for a policy's forward that goes on from
            them (`may_share_prompts`).
        part, whole: these prompts are `part` of a batch of `whole`, and get what they would be drawn there.
    """
    uniforms = None
    config = replace(config, group_size=config.completions(catalog.num_sequences))
    if config.negatives != "beam":
        shape = (whole or len(input_ids), config.group_size, catalog.trie.max_depth)
        uniforms = draw_uniforms(shape, input_ids.device, generator)[part]  # [B, G, L]
    trie = catalog.trie if config.softmax_over == "trie" else None
    prompt = None
    with evaluating(model):
        if shares_prompts:
            with phase("prefill"), torch.enable_grad():
                prompt = prefill(backbone(model), input_ids, attention_mask)
        sequences = _complete(model, catalog, input_ids, attention_mask, config, uniforms, prompt)
        with phase("reward"):
            targets = targets[:, None] if targets.ndim == 1 else targets  # [B, T]
            is_target = _is_target(sequences.nodes, catalog.item_nodes[targets])  # [B, G]
            hits = is_target.any(1)
            if config.ensure_positive:
                sequences = _put_target_last(sequences, is_target[:, -1], targets, catalog)
                is_target = _is_target(sequences.nodes, catalog.item_nodes[targets])
        scores = sequences.scores
        if config.ensure_positive or config.negatives == "random":
            with phase("decode"):
                known = score_sequences(
                    model,
                    input_ids,
                    attention_mask,
                    sequences.token_ids,
                    normalizer=config.softmax_over,
                    trie=trie,
                    prompt=prompt,
                )
                scores = torch.where(scores.isinf(), known, scores)
        with phase("reward"):
            rewards = is_target.float()
            if config.reward == "ranking":
                rewards = ranking_rewards(is_target, scores, sequences.nodes >= 0)
    return Groups(input_ids, attention_mask, sequences.token_ids, rewards, scores, hits, trie, prompt)


def may_share_prompts(model: nn.Module, config: GRPOConfig) -> bool:
    """Whether the policy's forward may, and should, go on from the prompts that the rollout has run.

    It may where both are the same function (no dropout, no activation checkpointing) and one forward and one update
    are all that a step has. It should where all groups are trained on, hence with beta > 0: one forward of the prompts
    is saved. Without KL only live groups are, and a prefill with a gradient would have to go back through the dead ones
    too.
    """
    if config.beta == 0 or config.gradient_accumulation > 1 or config.updates > 1:
        return False
    for name, value in backbone(model).config.to_dict().items():
        # Some decoders have their noise as a number, not as a module; the options of other heads do not matter.
        is_noise = ("drop" in name or "jitter" in name) and not name.startswith(("summary_", "classifier_"))
        if is_noise and isinstance(value, int | float) and value > 0:
            return False
    return not any(
        (isinstance(module, nn.Dropout) and module.p > 0) or getattr(module, "gradient_checkpointing", False)
        for module in model.modules()
    )


def _complete(
    model: nn.Module,
    catalog: Catalog,
    input_ids: Tensor,
    attention_mask: Tensor,
    config: GRPOConfig,
    uniforms: Tensor | None,
    prompt: Prompt | None,
) -> Sequences:
    search = (model, input_ids, attention_mask, catalog.trie, config.group_size)
    if config.negatives == "beam":
        return beam_sequences(*search, normalizer=config.softmax_over, prompt=prompt)
    if config.negatives == "sample":
        return sample_sequences(*search, normalizer=config.softmax_over, uniforms=uniforms, prompt=prompt)
    assert uniforms is not None
    return random_sequences(
        catalog.trie, catalog.token_ids, len(input_ids), config.group_size, uniforms=uniforms[..., 0]
    )


def _is_target(nodes: Tensor, target_nodes: Tensor) -> Tensor:
    """bool [B, G]: which nodes [B, G] are among the target_nodes [B, T] of their group."""
    return (nodes[:, :, None] == target_nodes[:, None, :]).any(2)


def _put_target_last(sequences: Sequences, keeps_last: Tensor, targets: Tensor, catalog: Catalog) -> Sequences:
    """Replace the last completion by the first missing one of the targets [B, T], where there is one.

    keeps_last: bool [B], groups that stay as they are. The score of what is put in is not yet known (-inf).
    """
    is_found = _is_target(catalog.item_nodes[targets], sequences.nodes)  # [B, T]
    first_missing = targets.gather(1, is_found.long().argmin(1, keepdim=True))[:, 0]  # [B]
    where = ~(is_found.all(1) | keeps_last)
    items = first_missing[where]
    nodes, tokens, scores = sequences.nodes.clone(), sequences.token_ids.clone(), sequences.scores.clone()
    nodes[where, -1] = catalog.item_nodes[items]
    tokens[where, -1] = catalog.token_ids[items].masked_fill(catalog.token_ids[items] < 0, -100)
    scores[where, -1] = -torch.inf
    return Sequences(nodes, tokens, scores)


def ranking_rewards(is_target: Tensor, scores: Tensor, valid: Tensor) -> Tensor:
    """ReRe's rule reward plus its NDCG-shaped penalty for negatives.

        r_i = 1 for a target, else -d_i / sum_j d_j,  d_i = 1 / log2(i + 2);  all 0 in a group without a target

    i is the zero-based rank of a completion by descending score in the whole group, targets and negatives together
    (ties: lower index first): the place in the beam. Targets, too, count in the sum over j: they have a place, and no
    penalty. So it is in ReRe's code (sober-clever/ReRe, rere.py, `ndcg_rewards` and `reward_type == "ranking"`), which
    takes the index in the group for i: another number only where the group is not in the order of its scores, as random
    completions and a target that was put last are not. With one target, of rank i, the mean reward of the group is
    d_i / (G sum_j d_j): the better its place, the higher.

    Args:
        is_target, valid: bool [B, G]; completions that are not valid get 0 and count nowhere.
        scores: fp32 [B, G].

    Returns:
        fp32 [B, G]. A negative's is never above 0.
    """
    order = scores.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(dim=1)  # [B, G]
    discounts = torch.log2(ranks.float() + 2.0).reciprocal().masked_fill(~valid, 0.0)
    penalties = discounts / discounts.sum(1, keepdim=True)
    rewards = torch.where(is_target, 1.0, -penalties)
    return rewards.masked_fill(~(is_target.any(1, keepdim=True) & valid), 0.0)


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
    with phase("policy_forward"):
        states, rows = completion_states(
            parts, groups.input_ids, groups.attention_mask, groups.token_ids, groups.prompt
        )
        weight, bias = parts.head_in(states.dtype)
    with phase("loss"):
        return tawin_grpo_loss(
            states,
            weight,
            groups.token_ids,
            groups.mask,
            groups.rewards,
            groups.scores,
            tawin=config.tawin.kernel_options() if config.tawin.enabled else None,
            old_log_probs=old_log_probs,
            ref_log_probs=ref_log_probs,
            loss_type=config.loss_type,
            importance_level=config.importance_level,
            epsilon_low=config.epsilon_low,
            epsilon_high=config.epsilon_high,
            beta=config.beta,
            bias=bias,
            normalize_std=config.normalize_std,
            denominator=denominator,
            rows=rows,
            normalizer=groups.normalizer,
            trie=groups.trie,
            nodes=groups.nodes,
            all_log_probs=False,
        )


def loss_denominator(groups: list[Groups], loss_type: str) -> float:
    """What the summed loss of all `groups` of a batch is divided by: sequences, tokens, or sequences x max length."""
    if loss_type in ("dapo", "bnpo", "cispo"):
        return float(sum(int(g.mask.sum()) for g in groups))
    sequences = sum(int(g.valid.sum()) for g in groups)
    return float(sequences * (groups[0].token_ids.shape[2] if loss_type == "dr_grpo" else 1))


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
