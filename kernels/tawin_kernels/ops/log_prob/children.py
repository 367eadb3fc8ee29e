"""Log-probabilities renormalised over the children of a trie node: the policy that constrained beam search follows.

    log p_i = z_{r t} - logsumexp_{v in children(node_i)} z_rv     pair i: token t, child of node_i, predicted by row r
    dz_rv = c_i (onehot(t)_v - p_v) over the children of node_i    c_i = d loss / d log p_i

Only tokens that the trie uses, U of them (1,024 with semantic ids of 4 x 256 codes), can be a child. So the logits of
each pair at those tokens are one product [pairs, U] on tensor cores, at most 2**24 logits at a time; then one program a
pair walks its node's children. FLOPs of one call with P pairs: 2 P U H forward, 4 P U H backward with a frozen head,
6 P U H with a trained one; P = 4,096, U = 1,024, H = 896: 7.5 GFLOP, 10 us forward at 790 TFLOP/s, and 17 MB written
and read again. Rows that several pairs share are computed for each of them. Both passes wait for the device to
count the pairs. Times on a GPU: not measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from ...arguments import IGNORED_TOKEN
from ...autograd import apply, differentiable_once
from ...launch import launch
from ...trie import ItemTrie
from .gradient_sums import matrix_product, segment_sum, unit_of
from .log_softmax import log_softmax_of
from .logsumexp import token_logits
from .segments import group_by
from .tiles import rows_in_place

_MAX_LOGITS = 2**24
_CHILDREN_AT_ONCE = 256


@triton.jit
def _edges_of(pair, nodes_ptr, child_offsets_ptr, num_nodes):
    """The first edge of a pair's node and the edge after its last: none for a node that does not exist."""
    node = tl.load(nodes_ptr + pair)
    is_node = (node >= 0) & (node < num_nodes)
    first = tl.load(child_offsets_ptr + node, mask=is_node, other=0)
    return first, tl.load(child_offsets_ptr + node + 1, mask=is_node, other=0)


@triton.jit
def _children(edges, end, edge_tokens_ptr, slots_ptr, logits_ptr):
    """Of the edges before `end`: that they are, their tokens, the columns of those, and the logits, -inf beyond it."""
    is_child = edges < end
    tokens = tl.load(edge_tokens_ptr + edges, mask=is_child, other=0)
    slots = tl.load(slots_ptr + tokens, mask=is_child, other=0)
    return is_child, tokens, slots, tl.load(logits_ptr + slots, mask=is_child, other=float("-inf"))


@triton.jit
def child_log_probs_kernel(
    logits_ptr,
    pairs_ptr,
    token_ids_ptr,
    nodes_ptr,
    child_offsets_ptr,
    edge_tokens_ptr,
    slots_ptr,
    log_probs_ptr,
    maxima_ptr,
    log_sums_ptr,
    entropy_ptr,
    U,
    num_nodes,
    scale,
    BLOCK_C: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
    place = tl.program_id(0).to(tl.int64)
    pair = tl.load(pairs_ptr + place)
    token = tl.load(token_ids_ptr + pair)
    begin, end = _edges_of(pair, nodes_ptr, child_offsets_ptr, num_nodes)
    maximum = float("-inf")
    total = 0.0
    moment = 0.0
    own = float("-inf")
    found = 0
    for first in range(begin, end, BLOCK_C):
        is_child, tokens, _, logits = _children(
            first + tl.arange(0, BLOCK_C), end, edge_tokens_ptr, slots_ptr, logits_ptr + place * U
        )
        is_own = is_child & (tokens == token)
        own = tl.maximum(own, tl.max(tl.where(is_own, logits, float("-inf")), 0))
        found = tl.maximum(found, tl.max(is_own.to(tl.int32), 0))
        larger = tl.maximum(maximum, tl.max(logits, 0))
        origin = tl.where(larger == float("-inf"), 0.0, larger)
        shift = (maximum - origin) * scale
        powers = (logits - origin) * scale
        terms = tl.exp(powers)
        moment = tl.exp(shift) * (moment + tl.where(total > 0, total * shift, 0.0))
        moment += tl.sum(tl.where(terms > 0, terms * powers, 0.0), 0)
        total = total * tl.exp(shift) + tl.sum(terms, 0)
        maximum = larger

    # A token that is no child of the node, or whose node does not exist, has no probability.
    log_sum = tl.log(total)
    log_prob = tl.where(found > 0, log_softmax_of(own, maximum, log_sum, scale), float("-inf"))
    tl.store(log_probs_ptr + pair, log_prob)
    tl.store(maxima_ptr + pair, maximum)
    tl.store(log_sums_ptr + pair, log_sum)
    if entropy_ptr is not None:
        tl.store(entropy_ptr + pair, tl.where(begin < end, log_sum - moment / total, 0.0))


@triton.jit
def child_gradient_kernel(
    logits_ptr,
    pairs_ptr,
    token_ids_ptr,
    nodes_ptr,
    child_offsets_ptr,
    edge_tokens_ptr,
    slots_ptr,
    maxima_ptr,
    log_sums_ptr,
    coefficients_ptr,
    slab_ptr,
    U,
    num_nodes,
    scale,
    BLOCK_C: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
    place = tl.program_id(0).to(tl.int64)
    pair = tl.load(pairs_ptr + place)
    token = tl.load(token_ids_ptr + pair)
    maximum = tl.load(maxima_ptr + pair)
    log_sum = tl.load(log_sums_ptr + pair)
    coefficient = tl.load(coefficients_ptr + pair)
    begin, end = _edges_of(pair, nodes_ptr, child_offsets_ptr, num_nodes)
    for first in range(begin, end, BLOCK_C):
        is_child, tokens, slots, logits = _children(
            first + tl.arange(0, BLOCK_C), end, edge_tokens_ptr, slots_ptr, logits_ptr + place * U
        )
        gradient = coefficient * (tl.where(tokens == token, 1.0, 0.0) - tl.exp((logits - maximum) * scale - log_sum))
        tl.store(slab_ptr + place * U + slots, gradient.to(slab_ptr.dtype.element_ty), mask=is_child)


def _logits_of_pieces(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    trie: ItemTrie,
    pairs: torch.Tensor,
    rows: torch.Tensor | None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Some pairs (int64 [P]) at a time: them, and their logits at the trie's tokens, fp32 [P, U], no temperature."""
    for piece in pairs.split(max(1, _MAX_LOGITS // len(trie.used_tokens))):
        row_ids = piece if rows is None else rows[piece]
        num_rows = torch.full((1,), len(piece), dtype=torch.int32, device=piece.device)
        yield (
            piece,
            token_logits(hidden, weight, bias, trie.used_tokens, row_ids, num_rows, by_place=True),
        )


class _ChildLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        token_ids: torch.Tensor,
        rows: torch.Tensor | None,
        trie: ItemTrie,
        nodes: torch.Tensor,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden, weight = rows_in_place(hidden), rows_in_place(weight)
        log_probs = torch.zeros(len(token_ids), dtype=torch.float32, device=hidden.device)
        maxima, log_sums = torch.zeros_like(log_probs), torch.zeros_like(log_probs)
        entropy = torch.zeros_like(log_probs) if with_entropy else None
        pairs = (token_ids != IGNORED_TOKEN).nonzero().squeeze(1)
        for piece, logits in _logits_of_pieces(hidden, weight, bias, trie, pairs, rows):
            launch(
                child_log_probs_kernel,
                (len(piece),),
                logits_ptr=logits,
                pairs_ptr=piece,
                token_ids_ptr=token_ids,
                nodes_ptr=nodes,
                child_offsets_ptr=trie.child_offsets,
                edge_tokens_ptr=trie.edge_tokens,
                slots_ptr=trie.token_slots,
                log_probs_ptr=log_probs,
                maxima_ptr=maxima,
                log_sums_ptr=log_sums,
                entropy_ptr=entropy,
                U=logits.shape[1],
                num_nodes=trie.num_nodes,
                scale=1.0 / float(temperature),
                BLOCK_C=_CHILDREN_AT_ONCE,
            )
        ctx.save_for_backward(hidden, weight, bias, token_ids, rows, nodes, maxima, log_sums)
        ctx.trie, ctx.temperature = trie, temperature
        if entropy is not None:
            ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    @differentiable_once("linear_log_probs")
    def backward(ctx: Any, gradient: torch.Tensor, _entropy: Any) -> tuple[Any, ...]:
        return (*_backward(ctx, gradient), *(None for _ in range(6)))


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    hidden, weight, bias, token_ids, rows, nodes, maxima, log_sums = ctx.saved_tensors
    trie, temperature = ctx.trie, ctx.temperature
    wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
    used = trie.used_tokens.long()  # [U]
    used_weight = weight[used]  # [U, H]
    pairs = ((token_ids != IGNORED_TOKEN) & (gradient != 0)).nonzero().squeeze(1)
    coefficients = gradient / temperature  # [N]
    unit = unit_of(coefficients[pairs]) if len(pairs) > 0 else coefficients.new_ones(())
    coefficients /= unit

    of_pairs = []  # fp32 [P, H] each
    of_used: torch.Tensor | None = None  # fp32 [U, H]
    of_bias = torch.zeros(len(used), dtype=torch.float32, device=hidden.device)
    for piece, logits in _logits_of_pieces(hidden, weight, bias, trie, pairs, rows):
        slab = torch.zeros(logits.shape, dtype=weight.dtype, device=weight.device)
        launch(
            child_gradient_kernel,
            (len(piece),),
            logits_ptr=logits,
            pairs_ptr=piece,
            token_ids_ptr=token_ids,
            nodes_ptr=nodes,
            child_offsets_ptr=trie.child_offsets,
            edge_tokens_ptr=trie.edge_tokens,
            slots_ptr=trie.token_slots,
            maxima_ptr=maxima,
            log_sums_ptr=log_sums,
            coefficients_ptr=coefficients,
            slab_ptr=slab,
            U=logits.shape[1],
            num_nodes=trie.num_nodes,
            scale=1.0 / float(temperature),
            BLOCK_C=_CHILDREN_AT_ONCE,
        )
        if wants_hidden:
            of_pairs.append(matrix_product(slab, used_weight))
        if wants_weight:
            of_used = matrix_product(slab.T, hidden[piece if rows is None else rows[piece]], of_used)
        if wants_bias:
            of_bias += slab.sum(0, dtype=torch.float32)
    # From here on no longer in units.
    of_used = None if of_used is None else of_used * unit
    of_bias *= unit

    hidden_gradient = torch.zeros_like(hidden) if wants_hidden else None
    if hidden_gradient is not None and of_pairs:
        sums, keys = torch.cat(of_pairs) * unit, pairs
        if rows is not None:
            members = torch.arange(len(pairs), device=pairs.device)
            by_row = group_by(rows[pairs])
            sums, keys = segment_sum(sums, members, torch.ones_like(sums[:, 0]), by_row), by_row.keys
        hidden_gradient.index_copy_(0, keys, sums.to(hidden.dtype))
    weight_gradient = torch.zeros_like(weight) if wants_weight else None
    if weight_gradient is not None and of_used is not None:
        weight_gradient.index_copy_(0, used, of_used.to(weight.dtype))
    bias_gradient = torch.zeros_like(bias).index_copy_(0, used, of_bias.to(bias.dtype)) if wants_bias else None
    return hidden_gradient, weight_gradient, bias_gradient


def triton_child_log_probs(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    bias: torch.Tensor | None,
    token_ids: torch.Tensor,
    rows: torch.Tensor | None,
    trie: ItemTrie,
    nodes: torch.Tensor,
    temperature: float,
    with_entropy: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """log p fp32 [N] and, if asked for, the entropy fp32 [N]; differentiable. Unchecked.

    hidden [R, H], lm_head_weight [V, H], token_ids, nodes and rows int64 [N]; without rows, R = N.
    """
    result: tuple[torch.Tensor, torch.Tensor | None] = apply(
        "linear_log_probs",
        _ChildLogProbs,
        hidden,
        lm_head_weight,
        bias,
        token_ids,
        rows,
        trie,
        nodes,
        temperature,
        with_entropy,
    )
    return result
