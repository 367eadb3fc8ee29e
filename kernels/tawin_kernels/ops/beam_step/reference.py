"""One constrained beam step in plain PyTorch."""

from __future__ import annotations

import math

import torch

from ...arguments import Impl
from ...checks import check_beam_step
from ...dispatch import reference_op
from ...top_k import top_k_stable
from ...trie import ItemTrie
from ...types import BeamStep, Normalizer
from ..log_prob.lm_head import accumulation_dtype, child_log_probs, shared_child_log_probs


@reference_op(check_beam_step)
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
    depth: int | None = None,
    impl: Impl = "auto",
    check_values: bool | None = None,
) -> BeamStep:
    """The best beam_width of all children of all live beams; see `tawin_kernels.ops.beam_step`."""
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
