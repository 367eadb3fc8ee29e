"""A constrained beam step in the manner of STATIC (arXiv 2602.22647): a vectorised mask, whatever the catalogue's size.

Where few prefixes have many continuations, the first levels, a dense table says for every node and token which node
comes next. Below them the trie is CSR: each node's edges are read in one burst of as many slots as the widest node of
the level has, and slots past the last edge are masked. Either way the cost depends on shapes alone. Around it stand a
log-softmax over the full vocabulary and `torch.topk`, and nothing synchronises the host.

Written from the paper's idea (its code, youtube/static-constraint-decoding, is Apache-2.0; none of it is here) and
meant to be stronger where an engineer would make it so. A table spans the tokens of its level, not the vocabulary, so
that a language model's 150,000 tokens do not matter; one top-k runs over all beams' candidates; and with normalizer
"trie" only the logits of the level's tokens are computed. `torch.compile` of the step drops the log-softmax's output,
of which little is read, and is left with reductions over the logits.

As in STATIC, a step knows its depth and all live beams stand at it. Ties come in the order of `torch.topk`, which
promises none, and a NaN among a live beam's logits is not looked for. No bias, no temperature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from tawin_kernels import BeamStep, ItemTrie
from torch import Tensor
from torch.nn.functional import linear

from .full_softmax import children_of, padded_step


@dataclass(frozen=True)
class Level:
    """The step from one depth of the trie to the next."""

    first_node: int
    first_edge: int
    max_children: int
    first_token: int  # the lowest token of any edge; the level's tokens span S from there
    span: int
    next_nodes: Tensor | None  # of a dense level: int32 [nodes of the level, S], -1 = no such child


@dataclass(frozen=True)
class DenseMaskTrie:
    """A catalogue as dense tables of its first levels and CSR arrays. Made once, outside of what is timed."""

    levels: tuple[Level, ...]
    child_offsets: Tensor  # int32 [nodes + 1]
    edge_tokens: Tensor  # int32 [nodes - 1]

    @classmethod
    def from_trie(cls, trie: ItemTrie, *, dense_levels: int = 2) -> DenseMaskTrie:
        """The index, on the device of the trie. STATIC makes two levels dense."""
        levels = []
        for depth, (begin, end) in enumerate(pairwise(trie.level_offsets[:-1])):
            first_edge, end_edge = int(trie.child_offsets[begin]), int(trie.child_offsets[end])
            counts = trie.child_offsets[begin : end + 1].diff()
            tokens = trie.edge_tokens[first_edge:end_edge].long()
            first_token = int(tokens.min())
            span = int(tokens.max()) + 1 - first_token
            table = None
            if depth < dense_levels:
                rows = torch.arange(end - begin, device=trie.device).repeat_interleave(counts)
                table = torch.full((end - begin, span), -1, dtype=torch.int32, device=trie.device)
                table[rows, tokens - first_token] = torch.arange(
                    first_edge + 1, end_edge + 1, dtype=torch.int32, device=trie.device
                )
            levels.append(Level(begin, first_edge, int(counts.max()), first_token, span, table))
        return cls(tuple(levels), trie.child_offsets, trie.edge_tokens)


@torch.no_grad()
def dense_mask_step(
    hidden: Tensor,
    lm_head_weight: Tensor,
    index: DenseMaskTrie,
    nodes: Tensor,
    scores: Tensor,
    beam_width: int,
    *,
    depth: int,
    normalizer: str = "vocab",
) -> BeamStep:
    """The step of `tawin_kernels.ops.beam_step` for beams whose nodes have the given depth, less than the trie's."""
    level = index.levels[depth]
    begin, end = level.first_token, level.first_token + level.span
    first, count = children_of(index.child_offsets, nodes, scores)  # [B, W]
    # A beam without children may hold anything, NaN too: with a state of zeros and a score of -inf nothing comes of it.
    hidden = hidden.masked_fill((count == 0)[..., None], 0.0)
    scores = scores.masked_fill(count == 0, -math.inf)
    if normalizer == "vocab":
        values = linear(hidden, lm_head_weight).log_softmax(-1, dtype=scores.dtype)[..., begin:end]  # [B, W, S]
    else:
        values = linear(hidden, lm_head_weight[begin:end]).to(scores.dtype)  # [B, W, S], logits

    if level.next_nodes is not None:
        # A dead beam's row is any row: its score masks all of it.
        next_nodes = level.next_nodes[(nodes - level.first_node).clamp(0, len(level.next_nodes) - 1)]  # [B, W, S]
        is_child = next_nodes >= 0
    else:
        slots = torch.arange(level.max_children, device=hidden.device)  # [K]
        is_child = slots < count[..., None]
        # A slot past the last child reads the level's first edge, whose token lies within the span.
        edges = torch.where(is_child, first[..., None] + slots, level.first_edge)
        next_nodes = edges + 1  # [B, W, K]
        values = values.gather(2, index.edge_tokens[edges].long() - begin)
    values = torch.where(is_child, values, -math.inf)  # [B, W, candidates of a beam]
    if normalizer == "trie":
        # A beam without children keeps its -inf: -inf less the lowest number, not less -inf, which is NaN.
        values = values - values.logsumexp(-1, keepdim=True).clamp_min(torch.finfo(values.dtype).min)
    values = (values + scores[..., None]).flatten(1)

    best, place = values.topk(min(beam_width, values.shape[1]))  # [B, beam_width]
    reached = next_nodes.flatten(1).gather(1, place).long()
    tokens = index.edge_tokens[(reached - 1).clamp_min(0)].long()  # edge e leads to node e + 1
    return padded_step(best, tokens, reached, place // next_nodes.shape[-1], beam_width)
