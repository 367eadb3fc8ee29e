"""A constrained beam step as most trainers would write it: the whole vocabulary's log-softmax, a mask, `torch.topk`.

Logits of every token for every beam, log-softmax in fp32, -inf for every token that the trie does not allow, plus the
beam's score, and the best of beams x vocabulary. It is as fast as eager PyTorch lets it be: no Python loop over beams,
no host synchronisation, the mask and the scores are written over the softmax's output. The same function may be given
to `torch.compile`.

Ties come in the order of `torch.topk`, which promises none, and a NaN among a live beam's logits is not looked for. No
bias, no temperature.
"""

from __future__ import annotations

import math

import torch
from tawin_kernels import BeamStep
from torch import Tensor
from torch.nn.functional import linear, pad


@torch.no_grad()
def full_softmax_step(
    hidden: Tensor,
    lm_head_weight: Tensor,
    child_offsets: Tensor,
    edge_tokens: Tensor,
    nodes: Tensor,
    scores: Tensor,
    beam_width: int,
    *,
    max_children: int,
    normalizer: str = "vocab",
) -> BeamStep:
    """The step of `tawin_kernels.ops.beam_step` on the arrays of an `ItemTrie`; live beams may stand at any depth.

    max_children: of any node in `nodes`; a search knows it before the step runs, as it knows the depth.
    normalizer: "trie" masks the logits instead, so that the softmax runs over the node's children alone.
    """
    B, W, _ = hidden.shape
    V = len(lm_head_weight)
    first, count = children_of(child_offsets, nodes, scores)  # [B, W]
    # A slot past the last child repeats an edge of the trie. It is masked out twice or lies in a beam without children.
    slot = torch.arange(max_children, device=hidden.device).minimum(count.clamp_min(1)[..., None] - 1)  # [B, W, K]
    edges = (first[..., None] + slot).clamp_max(len(edge_tokens) - 1)
    tokens = edge_tokens[edges].long()  # [B, W, K]
    is_forbidden = torch.ones(B, W, V, dtype=torch.bool, device=hidden.device).scatter_(2, tokens, False)

    # A beam without children may hold anything, NaN too: with a state of zeros and a score of -inf nothing comes of it.
    logits = linear(hidden.masked_fill((count == 0)[..., None], 0.0), lm_head_weight)  # [B, W, V]
    if normalizer == "trie":
        log_probs = logits.masked_fill_(is_forbidden, -math.inf).log_softmax(-1, dtype=scores.dtype)
    else:
        log_probs = logits.log_softmax(-1, dtype=scores.dtype).masked_fill_(is_forbidden, -math.inf)
    log_probs += scores.masked_fill(count == 0, -math.inf)[..., None]

    best, place = log_probs.view(B, W * V).topk(min(beam_width, W * V))  # [B, beam_width]
    parents, chosen = place // V, place % V
    # From the token back to its edge: the parent's children once more, this time to be compared.
    at_parent = parents[..., None].expand(-1, -1, max_children)
    is_chosen = tokens.gather(1, at_parent) == chosen[..., None]  # [B, beam_width, K]
    edge = first.gather(1, parents) + is_chosen.byte().argmax(-1)
    return padded_step(best, chosen, edge + 1, parents, beam_width)


def children_of(child_offsets: Tensor, nodes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """First edge and number of children of each beam's node, int64 [B, W]; none for a dead beam."""
    known = nodes.clamp_min(0)
    first = child_offsets[known].long()
    count = child_offsets[known + 1].long() - first
    return first, count.masked_fill((nodes < 0) | (scores == -math.inf), 0)


def padded_step(best: Tensor, tokens: Tensor, nodes: Tensor, parents: Tensor, beam_width: int) -> BeamStep:
    """The best [B, k <= beam_width] as a BeamStep: what is at -inf or past k is missing."""
    missing = best == -math.inf
    room = (0, beam_width - best.shape[1])
    return BeamStep(
        scores=pad(best, room, value=-math.inf),
        tokens=pad(tokens.masked_fill(missing, -1), room, value=-1),
        nodes=pad(nodes.masked_fill(missing, -1), room, value=-1),
        parents=pad(parents.masked_fill(missing, 0), room, value=0),
    )
