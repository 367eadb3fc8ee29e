"""log p of tokens and the gradient of the hidden states in one pass, where d loss / d log p is known before the head.

    z_rv = hidden_r . weight_v + bias_v       t_r: the target, the likeliest of row r's tokens
    e_rv = 2^((z_rv - z_r,t) log2 e / temperature - shift_r), others_r = sum of e_rv over v != t_r
    log p_t = -log(1 + others / e_rt)         dz_rv = c onehot(t)_v - C_r e_rv / (e_rt + others_r)

On-policy with beta 0 and ratios of tokens, d loss / d log p is -A / denominator whatever the log-probs are. Then each
logit is needed once: a slab of rows keeps e in the operands' dtype, and the factor C / sum of a row is applied to the
row's product with the weight, in fp32. 4 n V H FLOPs where forward and backward with a frozen head take 6; n = 4,096,
V = 151,936, H = 896 in bf16: 2.8 ms at 790 TFLOP/s. Bytes a logit: 2 written, 2 read. Times on a GPU: not measured.

e is taken relative to the target, which is known before the slab, so nothing waits for a maximum. With a target that is
less likely than another token by 2^100 (in fp16: 2) e would overflow. A tile of the vocabulary then has a shift of its
own, a whole number, and tiles whose shift is not the row's largest are multiplied by a power of two afterwards. Of
other tiles no memory is touched. A trained head takes the two passes of `log_prob`: the row's factor would have to be
rounded into one operand of its product, and its fp32 sums, [V, H], would be read and written once a slab.

Memory: a slab of at most 256 MiB, fp32 [slab rows, H], and the gradient of the hidden states in fp32 until backward,
since the gradient that comes from above is not known. The pass waits for the device once, to read how many rows it has.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ...arguments import IGNORED_TOKEN
from ...autograd import apply, differentiable_once
from ...launch import launch
from .gradient import pair_gradients
from .gradient_sums import matrix_product, segment_sum
from .pair_lists import DenseRows, PairLists, Pairs, clear_pairs, list_pairs
from .slab_kernels import exponentials
from .tiles import Head, rows_in_place

_MAX_SLAB_BYTES = 2**28
_PAIRS_AT_ONCE = 16
_COLUMNS_AT_ONCE = 128
_MEMBERS_AT_ONCE = 32


@triton.jit(do_not_specialize=["N"])
def pair_logits_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    tokens_ptr,
    rows_ptr,
    logits_ptr,
    N,
    H,
    stride_hidden_row,
    stride_weight_row,
    IGNORED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    pairs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = pairs < N
    tokens = tl.load(tokens_ptr + pairs, mask=inside, other=IGNORED)
    is_live = tokens != IGNORED
    tokens = tl.where(is_live, tokens, 0)
    rows = pairs.to(tl.int64)
    if rows_ptr is not None:
        rows = tl.load(rows_ptr + pairs, mask=is_live, other=0)
    products = tl.zeros([BLOCK_N, BLOCK_H], dtype=tl.float32)
    for start in range(0, H, BLOCK_H):
        offsets_h = start + tl.arange(0, BLOCK_H)
        wanted = is_live[:, None] & (offsets_h < H)[None, :]
        hidden = tl.load(hidden_ptr + rows[:, None] * stride_hidden_row + offsets_h[None, :], mask=wanted, other=0.0)
        weight = tl.load(weight_ptr + tokens[:, None] * stride_weight_row + offsets_h[None, :], mask=wanted, other=0.0)
        products += hidden.to(tl.float32) * weight.to(tl.float32)
    logits = tl.sum(products, 1)
    if bias_ptr is not None:
        logits += tl.load(bias_ptr + tokens, mask=is_live, other=0.0).to(tl.float32)
    tl.store(logits_ptr + pairs, logits, mask=inside)


@triton.jit
def row_log_probs_kernel(
    segments_ptr,
    order_ptr,
    offsets_ptr,
    logits_ptr,
    target_logits_ptr,
    log_sums_ptr,
    log_probs_ptr,
    scale,
    BLOCK_M: tl.constexpr,
):
    """log p of the pairs of row i, which is segment segments[i]; their logits, and that of the target, are unscaled."""
    scale = tl.cast(scale, tl.float32)
    place = tl.program_id(0).to(tl.int64)
    segment = tl.load(segments_ptr + place)
    highest, log_sum = tl.load(target_logits_ptr + place), tl.load(log_sums_ptr + place)
    end = tl.load(offsets_ptr + segment + 1)
    for start in range(tl.load(offsets_ptr + segment), end, BLOCK_M):
        places = start + tl.arange(0, BLOCK_M)
        members = tl.load(order_ptr + places, mask=places < end, other=0)
        logits = tl.load(logits_ptr + members, mask=places < end, other=0.0)
        tl.store(log_probs_ptr + members, (logits - highest) * scale - log_sum, mask=places < end)


def one_pass(
    head: Head, token_ids: torch.Tensor, rows: torch.Tensor | None, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p fp32 [N], 0 at ignored tokens; and d loss / d hidden fp32 [R, H] for gradient = d loss / d log p, fp32 [N].

    token_ids, rows int64 [N]; without rows, R = N.
    """
    pairs = Pairs(token_ids, rows, pair_logits(head, token_ids, rows), gradient / head.temperature)
    lists = list_pairs(pairs, len(head.hidden), len(head.weight), by_token=False, all_pairs=True)
    return one_pass_of_lists(head, pairs, lists)


def one_pass_of_lists(head: Head, pairs: Pairs, lists: PairLists) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of pairs whose log_probs are their logits before the temperature; nothing waits any more."""
    hidden, weight = head.hidden, head.weight
    (R, H), V = hidden.shape, len(weight)
    of_hidden = torch.zeros(R, H, dtype=torch.float32, device=hidden.device)
    log_probs = torch.zeros_like(pairs.log_probs)
    gradients = torch.empty_like(log_probs)
    D = len(lists.by_row.keys)
    segments = torch.arange(D, dtype=torch.int32, device=hidden.device)
    row_stride = -(-V // 16) * 16
    at_once = max(1, min(D, _MAX_SLAB_BYTES // (row_stride * weight.element_size()) // 128 * 128 or 128))
    room = torch.empty(at_once, row_stride, dtype=weight.dtype, device=weight.device)[:, :V]
    one = torch.ones((), dtype=torch.float32, device=hidden.device)
    for first in range(0, D, at_once):
        part = slice(first, min(first + at_once, D))
        block = DenseRows(segments[part], lists.by_row.keys[part], lists.rows.totals[part], lists.rows.targets[part])
        slab = room[: len(block.ids)]
        factors, of_others, log_sums = exponentials(head, block, lists.rows.highest[part], slab)
        _row_log_probs(head, pairs, lists, block, lists.rows.highest[part], log_sums, log_probs)
        if pairs.rows is not None:
            clear_pairs(pairs, lists, block, 0, slab)
        product = matrix_product(slab, weight).mul_(factors[:, None])
        known = pairs._replace(log_probs=log_probs)
        pair_gradients(known, lists, block, of_others[:, None], one, gradients)
        segment_sum(
            weight, pairs.tokens, gradients, lists.by_row, into=of_hidden, base=product, unit=one, chosen=block.segments
        )
    return log_probs, of_hidden


def pair_logits(head: Head, token_ids: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """fp32 [N], before the temperature."""
    hidden, weight, bias, _temperature = head
    logits = torch.empty(len(token_ids), dtype=torch.float32, device=hidden.device)
    launch(
        pair_logits_kernel,
        (triton.cdiv(len(token_ids), _PAIRS_AT_ONCE),),
        hidden_ptr=hidden,
        weight_ptr=weight,
        bias_ptr=bias,
        tokens_ptr=token_ids,
        rows_ptr=rows,
        logits_ptr=logits,
        N=len(token_ids),
        H=hidden.shape[1],
        stride_hidden_row=hidden.stride(0),
        stride_weight_row=weight.stride(0),
        IGNORED=IGNORED_TOKEN,
        BLOCK_N=_PAIRS_AT_ONCE,
        BLOCK_H=_COLUMNS_AT_ONCE,
    )
    return logits


def _row_log_probs(
    head: Head,
    pairs: Pairs,
    lists: PairLists,
    block: DenseRows,
    target_logits: torch.Tensor,
    log_sums: torch.Tensor,
    log_probs: torch.Tensor,
) -> None:
    launch(
        row_log_probs_kernel,
        (len(block.ids),),
        num_warps=1,
        segments_ptr=block.segments,
        order_ptr=lists.by_row.order,
        offsets_ptr=lists.by_row.offsets,
        logits_ptr=pairs.log_probs,
        target_logits_ptr=target_logits,
        log_sums_ptr=log_sums,
        log_probs_ptr=log_probs,
        scale=1.0 / float(head.temperature),
        BLOCK_M=_MEMBERS_AT_ONCE,
    )


class _KnownGradient(torch.autograd.Function):
    """The loss, whose gradient in hidden is known but for a factor."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, loss: torch.Tensor, of_hidden: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(of_hidden)
        ctx.shape, ctx.dtype = hidden.shape, hidden.dtype
        return loss.clone()

    @staticmethod
    @differentiable_once("tawin_grpo_loss")
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (of_hidden,) = ctx.saved_tensors
        return (of_hidden * gradient).to(ctx.dtype).view(ctx.shape), None, None


def with_known_gradient(hidden: torch.Tensor, loss: torch.Tensor, of_hidden: torch.Tensor) -> torch.Tensor:
    """The scalar `loss` with d loss / d hidden = of_hidden, fp32 [R, H] for hidden [..., H]."""
    result: torch.Tensor = apply("tawin_grpo_loss", _KnownGradient, hidden, loss, of_hidden)
    return result


@torch.no_grad()
def triton_one_pass(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    bias: torch.Tensor | None,
    token_ids: torch.Tensor,
    temperature: float,
    rows: torch.Tensor | None,
    gradient: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`one_pass` of checked arguments: log p of the shape of token_ids and gradient, and fp32 [R, H]."""
    states = rows_in_place(hidden.detach().reshape(-1, hidden.shape[-1]))
    head = Head(
        states,
        rows_in_place(lm_head_weight.detach()),
        None if bias is None else bias.detach().contiguous(),
        temperature,
    )
    flat_rows = None if rows is None else rows.reshape(-1).contiguous()
    log_probs, of_hidden = one_pass(head, token_ids.reshape(-1).contiguous(), flat_rows, gradient.reshape(-1))
    return log_probs.view(token_ids.shape), of_hidden
