"""Completions as a token tree: a forward in which each distinct prefix of a group is run once.

Completions of one prompt begin alike, as beams of a search do. All of a group's are one sequence behind their prompt:
every prefix that another token follows stands there once, sees its prompt and its own prefixes, and its state predicts
the next token of every completion that has it. Knows nothing of items, tries, rewards or losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .attention.masks import causal, model_mask
from .backbone import Backbone
from .packing import decoder_states
from .tree_attention import Block, Prompt, copied_cache, prompt_batch, states_behind


def completion_states(
    model: Backbone,
    input_ids: Tensor,
    attention_mask: Tensor,
    token_ids: Tensor,
    prompt: Prompt | None = None,
    *,
    scored: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Hidden states that predict every completion token, each distinct one once. Differentiable.

    Args:
        input_ids, attention_mask: [B, P], left-padded prompts.
        token_ids: int64 [B, G, L], completions; -100 = padding at the end.
        prompt: what `prefill` gave for these prompts. It is not run again then, and is left as it is.
        scored: bool [B, G, L], the tokens whose states are wanted; None: all. Behind the last of them nothing is run.

    Returns:
        states [R, H], and rows int64 [B, G, L]: the state that predicts each token, any one where it is not wanted.
    """
    exists = token_ids >= 0
    tree = _token_tree(token_ids, exists if scored is None else scored & exists)
    counts = tree.wanted.sum(1)  # int64 [B]
    if prompt is None:
        states = _states_with_prompts(model, input_ids, attention_mask, tree)
        firsts = (counts + 1).cumsum(0) - counts  # int64 [B], the state of each prompt's first node that has one
        ends = firsts - 1
    else:
        states = _states_after(model, prompt, tree)
        firsts = len(token_ids) + counts.cumsum(0) - counts
        ends = torch.arange(len(token_ids), device=token_ids.device)
    ends = ends[:, None, None]  # the state of each prompt's end predicts its completions' first tokens
    later = torch.where(tree.predicts, firsts[:, None, None] + tree.nodes, ends)  # [B, G, L - 1]
    return states, torch.cat((ends.expand(-1, token_ids.shape[1], 1), later), dim=2)


@dataclass(frozen=True)
class _TokenTree:
    """The nodes of every prompt's tree, S at most; those that only fill up stand at the end."""

    tokens: Tensor  # int64 [B, S]
    depths: Tensor  # int64 [B, S], tokens between prompt and node
    exists: Tensor  # bool [B, S]
    visible: Tensor  # bool [B, S, S], a node sees itself and the prefixes of its completions
    wanted: Tensor  # bool [B, S], the nodes whose states predict a token that is scored
    nodes: Tensor  # int64 [B, G, L - 1], which of the wanted nodes each token is, where it `predicts`
    predicts: Tensor  # bool [B, G, L - 1], the tokens that one follows which is scored


def _token_tree(token_ids: Tensor, scored: Tensor) -> _TokenTree:
    """token_ids int64 and scored bool [B, G, L]."""
    batch, group, length = token_ids.shape
    predicts = scored[:, :, 1:]  # bool [B, G, L - 1]; of titles, most of it is padding
    # Some token that is scored follows, at once or later.
    followed = predicts.flip(2).int().cumsum(2).flip(2) > 0
    owners = _prefix_owners(token_ids[:, :, :-1], followed)  # int64 [B, G, L - 1]
    is_node = (followed & (owners == torch.arange(group, device=owners.device)[:, None])).flatten(1)
    counts = is_node.sum(1)  # int64 [B]
    size = int(counts.max())
    slots = is_node.long().argsort(dim=1, descending=True, stable=True)[:, :size]  # [B, S], into [G * (L - 1)]
    exists = torch.arange(size, device=slots.device) < counts[:, None]  # bool [B, S]
    owner, depths = slots // max(1, length - 1), slots % max(1, length - 1)  # [B, S]

    # The owner of a node's prefixes, depth by depth: a node that owns its prefix at its own depth is one of them.
    ancestors = owners.gather(1, owner[..., None].expand(-1, -1, length - 1))  # [B, S, L - 1]
    ancestors = ancestors.gather(2, depths[:, None].expand(-1, size, -1))  # [B, S, S]
    visible = (ancestors == owner[:, None]) & (depths[:, :, None] >= depths[:, None]) & exists[:, None]
    visible.diagonal(dim1=1, dim2=2).fill_(True)  # what only fills up sees itself too: no softmax is over nothing

    own = (owners * (length - 1) + torch.arange(length - 1, device=owners.device)).flatten(1)  # [B, G * (L - 1)]
    is_wanted = torch.zeros_like(is_node).long()
    is_wanted.scatter_add_(1, own, predicts.flatten(1).long())
    wanted = (is_wanted.gather(1, slots) > 0) & exists
    nodes = slots.new_zeros(batch, group * (length - 1))
    nodes.scatter_(1, slots, wanted.long().cumsum(1) - 1)
    return _TokenTree(
        tokens=token_ids[:, :, :-1].flatten(1).gather(1, slots).clamp_min(0),
        depths=depths,
        exists=exists,
        visible=visible,
        wanted=wanted,
        nodes=nodes.gather(1, own).unflatten(1, (group, length - 1)),
        predicts=predicts,
    )


def _states_with_prompts(model: Backbone, input_ids: Tensor, attention_mask: Tensor, tree: _TokenTree) -> Tensor:
    """Prompts and trees in one forward: [R, H], of each prompt's end, then of its nodes."""
    prompts = prompt_batch(model, input_ids, attention_mask)
    size = tree.tokens.shape[1]
    positions = torch.cat((prompts.positions, prompts.lengths[:, None] + tree.depths), dim=1)  # [B, P + S]
    of_prompts = pad(causal(prompts.key_mask), (0, size))[:, prompts.common :]
    of_nodes = torch.cat((prompts.key_mask[:, None].expand(-1, size, -1), tree.visible), dim=2)
    visible = torch.cat((of_prompts, of_nodes), dim=1)  # [B, P - C + S, P + S]
    return decoder_states(
        model,
        torch.cat((prompts.input_ids, tree.tokens), dim=1),
        positions,
        torch.cat((prompts.key_mask, tree.exists), dim=1),
        torch.cat((prompts.ends, tree.wanted), dim=1),
        model_mask(model.config, visible, positions[:, prompts.common :], positions, model.dtype),
        common=prompts.common,
    )


def _states_after(model: Backbone, prompt: Prompt, tree: _TokenTree) -> Tensor:
    """Trees behind prompts that have been run: [R, H], of the prompts' ends, then of the nodes."""
    if tree.tokens.shape[1] == 0:
        return prompt.last_hidden
    block = Block(tree.tokens, tree.depths, tree.exists, tree.wanted, tree.visible)
    return torch.cat((prompt.last_hidden, states_behind(model, prompt, copied_cache(prompt.cache), block)))


def _prefix_owners(token_ids: Tensor, exists: Tensor) -> Tensor:
    """Of each token: the first completion of its group that exists there and has the same tokens up to it.

    token_ids int64 and exists bool [B, G, L]. int64 [B, G, L]; of no meaning where a token does not exist.
    """
    batch, group, _ = token_ids.shape
    alike = torch.ones(batch, group, group, dtype=torch.bool, device=token_ids.device)
    owners = []
    for tokens, is_there in zip(token_ids.unbind(-1), exists.unbind(-1), strict=True):
        alike = alike & (tokens[:, :, None] == tokens[:, None])
        owners.append((alike & is_there[:, None]).byte().argmax(-1))
    return torch.stack(owners, dim=-1) if owners else torch.zeros_like(token_ids)
