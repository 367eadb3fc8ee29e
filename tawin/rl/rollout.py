"""The rollout of a batch of prompts: completions, their scores and their rewards.

A completion is a target where the trie node says so, never by text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ..catalog.catalog import Catalog
from ..config import GRPOConfig
from ..model.backbone import backbone
from ..model.policy import evaluating
from ..model.tree_attention import Prompt, prefill
from ..run.phases import phase
from ..search.completions import (
    Sequences,
    beam_sequences,
    draw_uniforms,
    random_sequences,
    sample_sequences,
    score_sequences,
)
from .groups import Groups
from .rewards import Candidates, require_reward


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
    histories: Sequence[np.ndarray] | None = None,
    weights: Tensor | None = None,
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
        histories: the items that each prompt shows, for rewards that look at them.
        weights: fp32, of the shape of targets, what each of them weighs: its reward is that many times as large. None:
            1. With one target and `normalize_std` the scale of a group's rewards cancels.

    Raises:
        ValueError: `config.reward` names no reward.
    """
    reward = require_reward(config.reward)
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
            items = _first_items(sequences.nodes, catalog)
            if weights is not None:
                weights = _weights_of(sequences.nodes, catalog.item_nodes[targets], weights.view_as(targets))
            rewards = reward(Candidates(is_target, scores, items, histories, catalog, weights)).float()
            rewards = rewards.masked_fill(items < 0, 0.0)
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


def _weights_of(nodes: Tensor, target_nodes: Tensor, weights: Tensor) -> Tensor:
    """fp32 [B, G]: the largest weight [B, T] of the targets that a node is; 1 where it is none."""
    is_one = nodes[:, :, None] == target_nodes[:, None, :]  # [B, G, T]
    found = torch.where(is_one, weights.float()[:, None, :], 0.0).amax(2)
    return found.masked_fill(~is_one.any(2), 1.0)


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


def _first_items(nodes: Tensor, catalog: Catalog) -> Tensor:
    """int64, of the shape of `nodes`: the first item at each node, -1 where a node is -1."""
    trie = catalog.trie
    items = trie.item_ids[trie.item_offsets[nodes.clamp(min=0)].long().clamp(max=trie.num_items - 1)]
    return items.long().masked_fill(nodes < 0, -1)
