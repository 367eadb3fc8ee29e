"""Of beams whose node has more children than a tile: the sum that their probabilities are relative to, in parts.

`selection` adds the parts of a beam up, in their order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .candidates import child_logits


@triton.jit
def children_logsumexp_kernel(
    first_edges_ptr,
    counts_ptr,
    edge_tokens_ptr,
    slots_ptr,
    logits_ptr,
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    maxima_ptr,
    sums_ptr,
    U,
    H,
    scale,
    stride_hidden_row,
    stride_weight_row,
    SPLITS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)
    row = tl.program_id(0) // SPLITS
    split = tl.program_id(0) % SPLITS
    count = tl.load(counts_ptr + row)
    # Whoever scores the children of a node with one tile of them sees them all and needs no help.
    if count > BLOCK_C:
        # Of one beam: [1, 1, 1].
        rows = row.to(tl.int64) + tl.arange(0, 1)[None, :, None]
        first_edges = tl.load(first_edges_ptr + rows)
        counts = tl.load(counts_ptr + rows)
        places = tl.arange(0, BLOCK_C // LANES)[:, None, None] * LANES + tl.arange(0, LANES)[None, None, :]
        maximum = float("-inf")
        total = 0.0
        for tile in range(split, tl.cdiv(count, BLOCK_C), SPLITS):
            children = tile * BLOCK_C + places
            logits = child_logits(
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
                BLOCK_H,
            )
            larger = tl.maximum(maximum, tl.max(logits))
            origin = tl.where(larger == float("-inf"), 0.0, larger)
            total = total * tl.exp((maximum - origin) * scale) + tl.sum(tl.exp((logits - origin) * scale))
            maximum = larger
        target = row.to(tl.int64) * SPLITS + split
        tl.store(maxima_ptr + target, maximum)
        tl.store(sums_ptr + target, total)
