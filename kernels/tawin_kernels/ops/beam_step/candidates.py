"""The candidates of a beam step within a kernel: their logits, their keys, and what a key stands for.

    candidate_wc = score_w + (z_w,token(c) - maximum_w) / temperature - log_sum_w      child c of the node of beam w

A candidate is one int64 key: its fp32 score above, made sortable as an integer, and below it the place of the candidate
in the order of ties (beam, then child), so that the larger key is the better candidate and no two are equal. So picking
the largest keys, in any order of work, gives the same bits. These are the pieces that the kernels of `selection`
are made of; nothing here is launched.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..log_prob.log_softmax import log_softmax_of

MISSING = tl.constexpr(-(2**63))  # the key below all keys


@triton.jit
def child_logits(
    logits_ptr,
    slots_ptr,
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    edge_tokens_ptr,
    rows,
    first_edges,
    counts,
    children,
    U,
    H,
    stride_hidden_row,
    stride_weight_row,
    BLOCK_H: tl.constexpr,
):
    """fp32 [J, beams, LANES], before the temperature; -inf where a beam has no such child. Without logits_ptr: of a
    single beam.

    rows, first_edges, counts [1, beams, 1]; children [J, 1, LANES]. So most often a warp has one beam, and a thread has
    one child in every LANES of it: what is known of a beam is in registers once, not once a child.
    """
    is_child = children < counts
    edges = first_edges + children
    tokens = tl.load(edge_tokens_ptr + edges, mask=is_child, other=0)
    if logits_ptr is not None:
        slots = tl.load(slots_ptr + tokens, mask=is_child, other=0)
        logits = tl.load(logits_ptr + rows * U + slots, mask=is_child, other=float("-inf"))
    else:
        # Products of fp16 and bf16 are exact in fp32; they are added up in fp32.
        BLOCK_C: tl.constexpr = children.shape[0] * children.shape[2]
        hidden_rows = hidden_ptr + tl.reshape(rows, [1, 1]) * stride_hidden_row
        weight_rows = weight_ptr + tl.reshape(tokens, [BLOCK_C, 1]).to(tl.int64) * stride_weight_row
        has_row = tl.reshape(is_child, [BLOCK_C, 1])
        offsets_h = tl.arange(0, BLOCK_H)[None, :]
        products = tl.zeros([BLOCK_C, BLOCK_H], dtype=tl.float32)
        for start in range(0, H, BLOCK_H):
            inside = start + offsets_h < H
            hidden = tl.load(hidden_rows + start + offsets_h, mask=inside, other=0.0).to(tl.float32)
            weight = tl.load(weight_rows + start + offsets_h, mask=inside & has_row, other=0.0).to(tl.float32)
            products += hidden * weight
        logits = tl.reshape(tl.sum(products, 1), children.shape)
        if bias_ptr is not None:
            logits += tl.load(bias_ptr + tokens, mask=is_child, other=0.0).to(tl.float32)
        logits = tl.where(is_child, logits, float("-inf"))
    return logits


@triton.jit
def largest_keys(keys, K: tl.constexpr):
    """The K largest of int64 [N] (powers of two), descending; missing ones follow where N < K."""
    N: tl.constexpr = keys.shape[0]
    if N < K:
        is_first = tl.arange(0, K // N) == 0
        best = tl.reshape(tl.where(is_first[:, None], tl.sort(keys, descending=True)[None, :], MISSING), [K])
    else:
        best = tl.topk(keys, K)
    return best


@triton.jit
def candidate_keys(logits, maxima, log_sums, scale, beam_scores, beams, counts, children, CHILDREN: tl.constexpr):
    """int64 [J, beams, LANES]; shapes as in `child_logits`."""
    scores = beam_scores + log_softmax_of(logits, maxima, log_sums, scale)
    # fp32 bits sort as integers once the negative numbers' order is turned round; + 0.0: -0.0 becomes +0.0. Places are
    # turned round too, the lower one being the better one.
    bits = (scores + 0.0).to(tl.int32, bitcast=True)
    sortable = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    place = beams * CHILDREN + children
    keys = (sortable.to(tl.int64) << 32) + (place ^ 0x7FFFFFFF).to(tl.int64)
    # A NaN is not above -inf either.
    is_candidate = (children < counts) & (scores > float("-inf"))
    return tl.where(is_candidate, keys, MISSING)


@triton.jit
def write_step(
    keys,
    prompt,
    first_edges_ptr,
    edge_tokens_ptr,
    step_scores_ptr,
    step_tokens_ptr,
    step_nodes_ptr,
    step_parents_ptr,
    W,
    beam_width,
    CHILDREN: tl.constexpr,
    K: tl.constexpr,
):
    """The first beam_width of K descending keys, taken apart into the result's row of a prompt."""
    places = tl.arange(0, K)
    is_missing = keys == MISSING
    sortable = (keys >> 32).to(tl.int32)
    scores = tl.where(sortable < 0, sortable ^ 0x7FFFFFFF, sortable).to(tl.float32, bitcast=True)
    candidate = tl.where(is_missing, 0, (keys & 0x7FFFFFFF).to(tl.int32) ^ 0x7FFFFFFF)
    parents = candidate // CHILDREN
    first_edges = tl.load(first_edges_ptr + prompt * W + parents, mask=~is_missing, other=0)
    edges = first_edges + candidate % CHILDREN
    tokens = tl.load(edge_tokens_ptr + edges, mask=~is_missing, other=-1)

    is_stored = places < beam_width
    target = prompt * beam_width + places
    tl.store(step_scores_ptr + target, tl.where(is_missing, float("-inf"), scores), mask=is_stored)
    tl.store(step_tokens_ptr + target, tokens.to(tl.int64), mask=is_stored)
    tl.store(step_nodes_ptr + target, tl.where(is_missing, -1, edges + 1).to(tl.int64), mask=is_stored)
    tl.store(step_parents_ptr + target, parents.to(tl.int64), mask=is_stored)


@triton.jit
def sum_parts(maxima, sums, scale):
    """Of parts [J, beams, L]: their maximum, and log sum_jl sums exp((maxima - maximum) scale), both [1, beams, 1]."""
    maximum = tl.max(tl.max(maxima, 2, keep_dims=True), 0, keep_dims=True)
    origin = tl.where(maximum == float("-inf"), 0.0, maximum)
    parts = sums * tl.exp((maxima - origin) * scale)
    return origin, tl.log(tl.sum(tl.sum(parts, 2, keep_dims=True), 0, keep_dims=True))


@triton.jit
def best_columns(maxima, K: tl.constexpr, CHILDREN: tl.constexpr, BLOCK_W: tl.constexpr, LANES: tl.constexpr):
    """Of the largest key of each column, int64 [BLOCK_W * LANES]: the K best columns, each int32 [1, K, 1].

    A column is one lane of one beam's children [J]. Whether it has no candidate, which beam of the block, which lane.
    """
    largest = tl.reshape(tl.topk(maxima, K), [1, K, 1])
    place = (largest & 0x7FFFFFFF).to(tl.int32) ^ 0x7FFFFFFF
    return largest == MISSING, place // CHILDREN % BLOCK_W, place % LANES


@triton.jit
def of_beams(values, beams, K: tl.constexpr, BLOCK_W: tl.constexpr):
    """values fp32 [1, BLOCK_W, 1] at the beams [1, K, 1] of the block: exact, as all that is added to one is zeros."""
    is_one = tl.arange(0, BLOCK_W)[:, None] == tl.reshape(beams, [1, K])
    return tl.reshape(tl.sum(tl.where(is_one, tl.reshape(values, [BLOCK_W, 1]), 0.0), 0), [1, K, 1])
