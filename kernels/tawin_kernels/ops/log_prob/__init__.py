"""Log-probabilities of given tokens from hidden states: LM head, log-softmax and gather in one op.

    z_rv = (hidden_r . weight_v + bias_v) / temperature
    log p_i = z_{r t} - logsumexp_v z_rv                pair i: token t, predicted by row r

hidden [R, H], weight [V, H] in fp32, bf16 or fp16; the forward pass accumulates in fp32, never in tf32.
`logsumexp` streams the vocabulary for the rows that some token needs, one small kernel takes the dot product of
each pair on the same tiles; there is no [rows, vocabulary] tensor, and nothing waits for the device. Kept for the
backward pass (`gradient`): the softmax's maximum and sum of each row. The softmax over the children of a trie
node is in `children`.

FLOPs of one call with n live rows: 2 n V H forward, 4 n V H backward with a frozen head, 6 n V H with a trained one.
n = 4,096, V = 151,936, H = 896 in bf16: 1.41, 2.8, 4.2 ms at 790 TFLOP/s. The same 4,096 tokens with 15 % live and
prefixes shared are about 400 rows: 0.14, 0.28, 0.41 ms. Times on a GPU: not measured.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
import triton
import triton.language as tl

from ...arguments import IGNORED_TOKEN, Impl
from ...autograd import apply, differentiable_once
from ...dispatch import op
from ...launch import MOST_REGISTERS, launch
from ...trie import ItemTrie
from ...types import Normalizer
from . import children, reference
from .gradient import log_prob_gradient
from .log_softmax import log_softmax_of
from .logsumexp import RowStatistics, live_rows, vocabulary_statistics
from .pair_lists import Pairs
from .tiles import Head, dot_tile, matrix_sizes, matrix_tiles, rows_in_place


@triton.jit(do_not_specialize=["N"])
def target_log_probs_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    token_ids_ptr,
    rows_ptr,
    maxima_ptr,
    log_sums_ptr,
    log_probs_ptr,
    N,
    H,
    scale,
    stride_hidden_row,
    stride_weight_row,
    IGNORED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    EVEN_H: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """A tile of pairs times their own tokens, of which the diagonal is wanted.

    So a logit is added up as `vocabulary_kernel` does it and has the bits that it had in the row's maximum and sum.
    """
    tl.static_assert(BLOCK_R <= BLOCK_V)
    scale = tl.cast(scale, tl.float32)
    H, stride_hidden_row, stride_weight_row = H * MULTIPLE, stride_hidden_row * MULTIPLE, stride_weight_row * MULTIPLE
    first = tl.program_id(0) * BLOCK_R
    pairs = first + tl.arange(0, BLOCK_R)
    tokens_of_pairs = tl.load(token_ids_ptr + pairs, mask=pairs < N, other=IGNORED)
    is_live = tokens_of_pairs != IGNORED
    rows = pairs.to(tl.int64)
    if rows_ptr is not None:
        rows = tl.load(rows_ptr + pairs, mask=is_live, other=0)
    log_probs = tl.zeros([BLOCK_R], dtype=tl.float32)
    if tl.max(is_live.to(tl.int32), 0) > 0:
        # In place of what is ignored stands a pair that is not, so that loads need no mask and touch nothing else.
        rows = tl.where(is_live, rows, tl.max(tl.where(is_live, rows, 0), 0))
        columns = first + tl.arange(0, BLOCK_V)
        tokens = tl.load(token_ids_ptr + columns, mask=(columns < N) & (columns < first + BLOCK_R), other=IGNORED)
        tokens = tl.where(tokens != IGNORED, tokens, 0)
        offsets_h = tl.arange(0, BLOCK_H)
        hidden_ptrs = hidden_ptr + rows[:, None] * stride_hidden_row + offsets_h[None, :]
        weight_ptrs = weight_ptr + tokens[None, :] * stride_weight_row + offsets_h[:, None]
        logits = dot_tile(hidden_ptrs, weight_ptrs, H, BLOCK_R, BLOCK_V, BLOCK_H, EVEN_H)
        if bias_ptr is not None:
            logits += tl.load(bias_ptr + tokens).to(tl.float32)[None, :]
        is_own = pairs[:, None] == columns[None, :]
        own_logits = tl.sum(tl.where(is_own, logits, 0.0), 1)
        maxima = tl.load(maxima_ptr + rows)
        log_probs = log_softmax_of(own_logits, maxima, tl.load(log_sums_ptr + rows), scale)
    tl.store(log_probs_ptr + pairs, tl.where(is_live, log_probs, 0.0), mask=pairs < N)


def _forward(
    head: Head, token_ids: torch.Tensor, rows: torch.Tensor | None, with_entropy: bool
) -> tuple[torch.Tensor, RowStatistics, torch.Tensor | None]:
    """log p fp32 [N], the statistics of the rows with a token, entropy fp32 [N]. token_ids, rows int64 [N]."""
    hidden, weight, bias, temperature = head
    R = len(hidden)
    is_live = token_ids != IGNORED_TOKEN
    if rows is None:
        is_live_row = is_live
    else:
        # Tokens that are ignored mark one row more than there are.
        is_live_row = torch.zeros(R + 1, dtype=torch.bool, device=hidden.device)
        is_live_row.index_fill_(0, torch.where(is_live, rows, R), True)
        is_live_row = is_live_row[:R]
    row_ids, num_rows = live_rows(is_live_row)
    statistics = vocabulary_statistics(hidden, weight, bias, temperature, row_ids, num_rows, with_entropy=with_entropy)
    log_probs = torch.empty(len(token_ids), dtype=torch.float32, device=hidden.device)
    tiles = matrix_tiles(R, hidden, weight)  # as for the statistics
    launch(
        target_log_probs_kernel,
        (triton.cdiv(len(token_ids), tiles.rows),),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        max_registers=MOST_REGISTERS if hidden.dtype == torch.float32 else None,
        hidden_ptr=hidden,
        weight_ptr=weight,
        bias_ptr=bias,
        token_ids_ptr=token_ids,
        rows_ptr=rows,
        maxima_ptr=statistics.maxima,
        log_sums_ptr=statistics.log_sums,
        log_probs_ptr=log_probs,
        N=len(token_ids),
        scale=1.0 / float(temperature),
        IGNORED=IGNORED_TOKEN,
        BLOCK_V=tiles.tokens,
        **matrix_sizes(hidden, weight, tiles),
    )
    entropy = statistics.entropy
    if entropy is not None:
        entropy = torch.where(is_live, entropy if rows is None else entropy[torch.where(is_live, rows, 0)], 0.0)
    return log_probs, statistics, entropy


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        token_ids: torch.Tensor,
        rows: torch.Tensor | None,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        head = Head(rows_in_place(hidden), rows_in_place(weight), bias, temperature)
        log_probs, statistics, entropy = _forward(head, token_ids, rows, with_entropy)
        kept = (log_probs, statistics.maxima, statistics.log_sums)
        ctx.save_for_backward(head.hidden, head.weight, bias, token_ids, rows, *kept)
        ctx.temperature = temperature
        if entropy is not None:
            ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    @differentiable_once("linear_log_probs")
    def backward(ctx: Any, gradient: torch.Tensor, _entropy: Any) -> tuple[Any, ...]:
        hidden, weight, bias, token_ids, rows, log_probs, maxima, log_sums = ctx.saved_tensors
        head = Head(hidden, weight, bias, ctx.temperature)
        pairs = Pairs(token_ids, rows, log_probs, gradient / ctx.temperature)
        statistics = RowStatistics(maxima, log_sums, None)
        return (
            *log_prob_gradient(head, pairs, statistics, ctx.needs_input_grad[:3]),
            *(None for _ in range(4)),
        )


def triton_log_probs(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    bias: torch.Tensor | None,
    token_ids: torch.Tensor,
    temperature: float,
    *,
    rows: torch.Tensor | None = None,
    normalizer: Normalizer = "vocab",
    trie: ItemTrie | None = None,
    nodes: torch.Tensor | None = None,
) -> torch.Tensor:
    """`linear_log_probs` of checked arguments: log p, fp32 of the shape of token_ids."""
    return triton_log_probs_and_entropy(
        hidden, lm_head_weight, bias, token_ids, temperature, rows, normalizer, trie, nodes, with_entropy=False
    )[0]


def triton_log_probs_and_entropy(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    bias: torch.Tensor | None,
    token_ids: torch.Tensor,
    temperature: float,
    rows: torch.Tensor | None,
    normalizer: Normalizer,
    trie: ItemTrie | None,
    nodes: torch.Tensor | None,
    *,
    with_entropy: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The same, and the entropy if it is asked for."""
    head = (hidden.reshape(-1, hidden.shape[-1]), lm_head_weight, None if bias is None else bias.contiguous())
    tokens = _flat(token_ids)
    flat_rows = None if rows is None else _flat(rows)
    if normalizer == "trie":
        assert trie is not None and nodes is not None
        log_probs, entropy = children.triton_child_log_probs(
            *head, tokens, flat_rows, trie, _flat(nodes), temperature, with_entropy
        )
    else:
        log_probs, entropy = apply(
            "linear_log_probs", _LinearLogProbs, *head, tokens, flat_rows, temperature, with_entropy
        )
    return log_probs.view(token_ids.shape), None if entropy is None else entropy.view(token_ids.shape)


def _flat(indexes: torch.Tensor) -> torch.Tensor:
    """Contiguous [N]. Those of a rollout in inference mode are copied: autograd keeps no tensor of that kind."""
    flat = indexes.reshape(-1).contiguous()
    return flat.clone() if flat.is_inference() else flat


@overload
def linear_log_probs(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    temperature: float = ...,
    bias: torch.Tensor | None = ...,
    rows: torch.Tensor | None = ...,
    normalizer: Normalizer = ...,
    trie: ItemTrie | None = ...,
    nodes: torch.Tensor | None = ...,
    with_entropy: Literal[False] = ...,
    impl: Impl = ...,
    check_values: bool | None = ...,
) -> torch.Tensor: ...
@overload
def linear_log_probs(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    temperature: float = ...,
    bias: torch.Tensor | None = ...,
    rows: torch.Tensor | None = ...,
    normalizer: Normalizer = ...,
    trie: ItemTrie | None = ...,
    nodes: torch.Tensor | None = ...,
    with_entropy: Literal[True],
    impl: Impl = ...,
    check_values: bool | None = ...,
) -> tuple[torch.Tensor, torch.Tensor]: ...
@op(reference.linear_log_probs, multiplies=True)
def linear_log_probs(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    temperature: float = 1.0,
    bias: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    normalizer: Normalizer = "vocab",
    trie: ItemTrie | None = None,
    nodes: torch.Tensor | None = None,
    with_entropy: bool = False,
    impl: Impl = "auto",
    check_values: bool | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """log softmax((hidden @ lm_head_weight.T + bias) / temperature) at token_ids.

    hidden: [*N, H] fp32, bf16, fp16 (fp64 too on the CPU), N any leading shape.
    lm_head_weight: [V, H], dtype of hidden. bias: [V], dtype of hidden, or None.
    token_ids: int64 [*N] in [0, V); -100 gives 0 and no gradient, and its hidden state is not read.
    temperature: logits are divided by it, at least 1e-30.
    rows: int64 [*N] in [0, R), the deduplicated form: hidden is [R, H] then, and token i is predicted by
        hidden[rows[i]]. Completions that share a prefix share its state, which is computed once.
    normalizer: "vocab": the softmax runs over the vocabulary; "trie": over the children of nodes[i], as in
        `beam_step(normalizer="trie")`. trie and nodes are given with it and only with it.
    nodes: int64 [*N], the node of the trie that the token at i is a child of; where token_ids is -100 it is not read.
    with_entropy: also return the entropy of the distribution that each token is drawn from.
    impl: "auto", "triton" or "reference"; an explicit choice that cannot run raises.
    check_values: True: check tensor values on a GPU too, which synchronises it. On the CPU they are always checked.

    Returns fp32 [*N] (fp64 for fp64), natural log. Differentiable in hidden, lm_head_weight and bias. With entropy:
    (log_probs, entropy), entropy in nats, same shape and dtype, 0 at -100, without a gradient.
    Inside an autocast region the forward pass still accumulates in fp32. Call backward outside of the region: inside,
    PyTorch may run matrix products in the region's lower precision.
    The Triton backward pass leaves out tokens whose gradient is 0 and waits for the device to count the others; with
    normalizer "trie" the forward pass, too, waits for it to count the tokens. It is differentiable once: a second
    derivative raises RuntimeError, impl="reference" has it.
    Raises TypeError or ValueError naming the argument.
    """
    log_probs, entropy = triton_log_probs_and_entropy(
        hidden,
        lm_head_weight,
        bias,
        token_ids,
        temperature,
        rows,
        normalizer,
        trie,
        nodes,
        with_entropy=with_entropy,
    )
    return log_probs if entropy is None else (log_probs, entropy)
