"""One constrained beam step: score the children of every live beam in the item trie and keep the best.

    z_wv = (hidden_w . weight_v + bias_v) / temperature
    candidate_wc = score_w + z_w,token(c) - logsumexp_{v in N} z_wv      N: the vocabulary, or the children of w's node
    the beam_width largest of all children c of all beams w of a prompt, ties by lower w, then lower c

It knows nothing of models or caches: a hidden state goes in, the chosen tokens, nodes and parents come out.

hidden [B, W, H], weight [V, H]. Only beams with children count; they are listed first, on the device. Then:
  vocab   logsumexp of each row over V tokens, streamed (`logsumexp`): no [B, W, V] tensor
  both    the logits at the U tokens that the trie uses, at the beams' depth if that is given, fp32 [B * W, U], by
          tensor cores, at most 64 MiB of them: prompts go in pieces where that is less than all. Where U is in the
          thousands, too many for that, and each
          node has so few of them that reading is cheaper than multiplying, the LM-head rows of the children are
          gathered instead
  both    the selection (`selection`), which looks up the children's logits
Five launches with "vocab", three with "trie", more only where prompts go in pieces or the candidates of one do not fit
one program. The host never waits and launches depend on shapes and on what the trie knows of itself, so a step can be
captured in a CUDA graph, after `trie.prepare()`.
A step's cost does not depend on the number of items, only on U and on the most children of any node.

One call with B = 256, W = 16, H = 896, V = 151,936, U = 1,024 in bf16, 256 children a node:
  vocab   2 B W V H = 1.115 TFLOP and 2 B W U H = 7.5 GFLOP: 1.42 ms at 790 TFLOP/s; 272 MB of weight are 63 us of it
  trie    7.5 GFLOP, 9.5 us; 9 MB in, 17 MB of logits written and read, 4 MB of edges: 47 MB, 11 us at 4.3 TB/s
  trie, 256 tokens at a known depth: 1.9 GFLOP, 2.4 us; 20 MB, 5 us
Predicted, with launches: vocab 1.8 ms, trie 30 us, 20 us at a known depth. Times on a GPU: not measured.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ...arguments import Impl
from ...dispatch import op
from ...launch import launch, multiprocessors
from ...trie import Below, ItemTrie
from ...types import BeamStep, Normalizer
from ..log_prob.logsumexp import RowStatistics, token_logits, vocabulary_statistics
from ..log_prob.tiles import Head, rows_in_place
from . import reference
from .selection import MAX_BEAM_WIDTH, RowInputs, Selection, plan_selection, select_children

_MAX_LOGITS = 2**24
_MAX_KEYS = 2**24
_MANY_TOKENS = 4096  # of the trie: more, and most of a matrix of their logits would be nobody's child
# What a GPU computes while it reads a byte: H200, 790 TFLOP/s and, without tensor cores, 60; 4.3 TB/s.
_FLOPS_PER_BYTE = 180
_FLOPS_PER_BYTE_FP32 = 14
_BEAMS_AT_ONCE = 8192  # of the one program that lists the live beams
_MAX_PLACES = 2**31  # the order of a prompt's candidates is kept in 31 bits


class LiveBeams(NamedTuple):
    """Of R = B * W beams, on the device."""

    first_edges: torch.Tensor  # int32 [R]
    counts: torch.Tensor  # int32 [R], children; 0 for a dead beam
    row_ids: torch.Tensor  # int32 [R], the beams that have children, ascending; the first num_rows count
    num_rows: torch.Tensor  # int32 [1]


@triton.jit(do_not_specialize=["R"])
def live_beams_kernel(
    nodes_ptr,
    scores_ptr,
    child_offsets_ptr,
    first_edges_ptr,
    counts_ptr,
    row_ids_ptr,
    num_rows_ptr,
    R,
    BLOCK_R: tl.constexpr,
):
    num_rows = 0
    for start in range(0, R, BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        is_row = rows < R
        nodes = tl.load(nodes_ptr + rows, mask=is_row, other=-1)
        is_alive = (nodes >= 0) & (tl.load(scores_ptr + rows, mask=is_row, other=float("-inf")) > float("-inf"))
        first_edges = tl.load(child_offsets_ptr + nodes, mask=is_alive, other=0)
        counts = tl.load(child_offsets_ptr + nodes + 1, mask=is_alive, other=0) - first_edges
        tl.store(first_edges_ptr + rows, first_edges, mask=is_row)
        tl.store(counts_ptr + rows, counts, mask=is_row)

        has_children = (counts > 0).to(tl.int32)
        place = num_rows + tl.cumsum(has_children, 0) - 1
        tl.store(row_ids_ptr + place, rows, mask=counts > 0)
        num_rows += tl.sum(has_children, 0)
    tl.store(num_rows_ptr, num_rows)


def live_beams(trie: ItemTrie, nodes: torch.Tensor, scores: torch.Tensor) -> LiveBeams:
    """The beams that have children, of nodes int64 [B, W] and scores fp32 [B, W], both contiguous."""
    R = nodes.numel()

    def new(size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int32, device=nodes.device)

    beams = LiveBeams(first_edges=new(R), counts=new(R), row_ids=new(R), num_rows=new(1))
    block_r = min(triton.next_power_of_2(R), _BEAMS_AT_ONCE)
    launch(
        live_beams_kernel,
        (1,),
        num_warps=max(1, min(16, block_r // 128)),
        nodes_ptr=nodes,
        scores_ptr=scores,
        child_offsets_ptr=trie.child_offsets,
        first_edges_ptr=beams.first_edges,
        counts_ptr=beams.counts,
        row_ids_ptr=beams.row_ids,
        num_rows_ptr=beams.num_rows,
        R=R,
        BLOCK_R=block_r,
    )
    return beams


def _expected_children(W: int, trie: ItemTrie, depth: int | None) -> float:
    """Of a node where a beam stands, from what the host knows.

    Without a depth a single beam is taken to stand at the root, the widest node as a rule; several below it, where the
    trie goes on.
    """
    if depth is not None:
        return trie.levels[depth].edges / trie.levels[depth].nodes
    if W == 1 or trie.max_depth <= 1:
        return trie.max_children
    first, end = trie.level_offsets[1], trie.level_offsets[-2]  # the depths between the root and the last
    return (trie.num_nodes - trie.level_offsets[2]) / (end - first)


def _is_gathered(B: int, W: int, trie: ItemTrie, depth: int | None, weight: torch.Tensor) -> bool:
    """Whether the children's LM-head rows are gathered, instead of computing the logits of all that can be a child.

    By what a beam costs, in bytes: gathering reads a row of the LM head for each child; the product takes 2 H FLOPs a
    token, and its result is written and read.
    """
    U, H = len(trie.below(depth).tokens), weight.shape[1]
    if W * U > _MAX_LOGITS:
        return True
    if B * W * U <= _MAX_LOGITS or U <= _MANY_TOKENS:
        return False
    flops_per_byte = _FLOPS_PER_BYTE_FP32 if weight.dtype == torch.float32 else _FLOPS_PER_BYTE
    product = U * (2 * H / flops_per_byte + 8)
    return _expected_children(W, trie, depth) * H * weight.element_size() < product


def _step_prompts(
    head: Head,
    trie: ItemTrie,
    below: Below,
    beams: LiveBeams,
    scores: torch.Tensor,
    statistics: RowStatistics | None,
    selection: Selection,
    step: BeamStep,
) -> None:
    """One piece: fill `step` for states [B * W, H], its beams and contiguous scores [B, W]."""
    logits = None
    if not selection.gathered:
        states, weight, bias, _ = head
        logits = token_logits(states, weight, bias, below.tokens, beams.row_ids, beams.num_rows)  # [R, U]
    rows = RowInputs(scores, beams.first_edges, beams.counts, statistics, logits, below.slots, head)
    select_children(rows, trie, selection, step)


def triton_beam_step(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    trie: ItemTrie,
    nodes: torch.Tensor,
    scores: torch.Tensor,
    beam_width: int,
    normalizer: Normalizer,
    temperature: float,
    depth: int | None,
) -> BeamStep:
    """`beam_step` as kernels, unchecked. Hidden states are copied where rows are not evenly spaced."""
    B, W, _ = hidden.shape
    step = BeamStep(
        scores=torch.empty(B, beam_width, dtype=torch.float32, device=hidden.device),
        tokens=torch.empty(B, beam_width, dtype=torch.int64, device=hidden.device),
        nodes=torch.empty(B, beam_width, dtype=torch.int64, device=hidden.device),
        parents=torch.empty(B, beam_width, dtype=torch.int64, device=hidden.device),
    )
    if B * W == 0:
        for result, missing in zip(step, (-torch.inf, -1, -1, 0), strict=True):
            result.fill_(missing)
        return step

    weight, nodes, scores = rows_in_place(weight), nodes.contiguous(), scores.contiguous()
    bias = None if bias is None else bias.contiguous()
    below, gathered = trie.below(depth), _is_gathered(B, W, trie, depth, weight)
    processors = multiprocessors(hidden.device)
    if gathered:
        whole = plan_selection(B, W, below.max_children, beam_width, processors, gathered=True)
        at_once = max(1, _MAX_KEYS // (whole.lists * whole.kept))
    else:
        at_once = max(1, _MAX_LOGITS // (W * len(below.tokens)))
    states = rows_in_place(hidden.reshape(-1, hidden.shape[-1]))  # [R, H]
    beams = statistics = None
    if normalizer == "vocab":  # of all prompts at once: each call reads the whole LM head
        beams = live_beams(trie, nodes, scores)
        statistics = vocabulary_statistics(states, weight, bias, temperature, beams.row_ids, beams.num_rows)
    for first in range(0, B, at_once):
        piece = slice(first, min(B, first + at_once))
        rows = slice(piece.start * W, piece.stop * W)
        if beams is None or at_once < B:
            beams = live_beams(trie, nodes[piece], scores[piece])
        selection = plan_selection(piece.stop - first, W, below.max_children, beam_width, processors, gathered=gathered)
        _step_prompts(
            Head(states[rows], weight, bias, temperature),
            trie,
            below,
            beams,
            scores[piece],
            None if statistics is None else RowStatistics(statistics.maxima[rows], statistics.log_sums[rows], None),
            selection,
            BeamStep(*(result[piece] for result in step)),
        )
    return step


def _limit(W: int, max_children: int, beam_width: int) -> str | None:
    """What the kernels do not take, as an error message, or None."""
    if beam_width > MAX_BEAM_WIDTH:
        return f"beam_width: expected at most {MAX_BEAM_WIDTH} with the Triton kernels, got {beam_width}"
    if W * triton.next_power_of_2(max_children) > _MAX_PLACES:
        return (
            f"hidden: expected W * children of a node of at most 2**31 with the Triton kernels, got {W} beams and "
            f"{max_children} children"
        )
    return None


@op(reference.beam_step, multiplies=True)
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
    """The beam_width best continuations of each prompt's beams within the trie. No gradient.

    hidden: [B, W, H] fp32, bf16, fp16 (fp64 too on the CPU), the state that predicts each beam's next token.
    lm_head_weight: [V, H], dtype of hidden. bias: [V] or None.
    trie: the catalogue, on the device of hidden, with tokens below V.
    nodes: int64 [B, W], where each beam stands; -1 is a dead beam.
    scores: fp32 [B, W] (or fp64 with fp64 hidden), natural-log scores so far; -inf is a dead beam, of which nothing
        else is read.
    beam_width: how many to return, >= 1; it may exceed W and the number of candidates. Triton takes up to 512, "auto"
        leaves more to the reference op.
    normalizer: "vocab": log p over the whole vocabulary; "trie": renormalised over the children of the beam's node.
    temperature: logits are divided by it, at least 1e-30.
    depth: in [0, trie.max_depth), where all beams stand at that depth, as in a search: only the tokens that follow
        there are multiplied, and only the children that a node has there are looked for. None: they stand anywhere.
    impl: "auto", "triton" or "reference"; an explicit choice that cannot run raises.
    check_values: True: check tensor values on a GPU too, which synchronises it. On the CPU they are always checked.

    Returns BeamStep of [B, beam_width] tensors, best first; ties: lower parent, then lower edge. A candidate at -inf
    or NaN is a missing one: score -inf, node -1, token -1, parent 0. A beam at a leaf has no candidates.
    On a GPU nothing waits for the device once `trie.prepare()` was called: a step may be captured in a CUDA graph.
    Raises TypeError or ValueError naming the argument.
    """
    limit = _limit(hidden.shape[1], trie.below(depth).max_children, beam_width)
    if limit is None:
        # int: Triton takes no other whole number, such as NumPy's, for a size of a block.
        return triton_beam_step(
            hidden, lm_head_weight, bias, trie, nodes, scores, int(beam_width), normalizer, temperature, depth
        )
    if impl == "triton":
        raise ValueError(f"{limit}; use impl='reference' or 'auto'")
    options: dict[str, Any] = {
        "normalizer": normalizer,
        "temperature": temperature,
        "bias": bias,
        "depth": depth,
        "check_values": check_values,
    }
    return reference.beam_step(hidden, lm_head_weight, trie, nodes, scores, beam_width, **options)
