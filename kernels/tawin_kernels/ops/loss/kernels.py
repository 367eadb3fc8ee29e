"""The group losses of `grpo_loss` in Triton, and their gradient.

    rho_t = exp(logp_t - old_t)                          the mean of the exponent over a completion at sequence level
    l_t = -min(rho_t A, clip(rho_t) A)                   "cispo": -min(rho_t, epsilon_high) A logp_t, constant minimum
          + beta (exp(ref_t - logp_t) - (ref_t - logp_t) - 1)
    loss = sum_m u_m sum_t l_t / denominator             u_m = 1 / |m| for "grpo" and "gspo", else 1
    dloss / dlogp_t = u_m (-rho_t A [not clipped] + beta (1 - exp(ref_t - logp_t))) / denominator

The last line holds at both levels: at sequence level each of the |m| equal terms has 1 / |m| of its derivative at t.

log_probs [B, G, L], advantages [B, G]. One kernel reads the tokens: it writes log_probs and the coefficient of each,
and five sums a program. A kernel of one program adds those up in their order and makes loss, kl, clip_fraction and
1 / denominator of them, so nothing waits for the device and the same input gives the same bits. The backward pass is a
product of the coefficients with one number. Only tokens that exist are read.

One call, bytes a token: mask 1, logp 4, old 4, ref 4, and 4 + 4 written: 17 without ref; some 20 FLOPs. 4,096 tokens,
70 KB, 16 ns at 4.3 TB/s: two launches, predicted 6 us. 1,048,576 tokens: 17.8 MB, 4.1 us: predicted 9 us. The backward
pass reads 4 and writes 4 bytes a token. Times on a GPU: not measured.

The advantages are given, and a program takes a block of completions of whatever groups; or they are made in the same
launch from rewards and scores (`kernels`), and a program takes one group of at most 512.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ...autograd import apply, differentiable_once
from ...launch import REGISTERS, launch
from ...types import GRPOLoss
from ..advantage.kernels import GroupRewards, relative_advantages_of
from .types import LOSS_KINDS, ImportanceLevel, LossKind, LossType

_TILE = 512  # tokens of completions side by side, four a thread: 16 bytes at once of what is fp32
_LONGEST_ROW = 128  # a warp a row: its sums stay within the warp
_TOKENS_A_WARP = 128  # where the advantages are made as well
_PARTIALS_AT_ONCE = 512

# Of a launch whose advantages are given.
_NO_REWARDS: dict[str, Any] = {
    "rewards_ptr": None,
    "scores_ptr": None,
    "eps": 0.0,
    "anchor": 0.0,
    "window": 1.0,
    "temperature": 1.0,
    "NORMALIZE_STD": False,
    "RANK_TRANSFORM": "identity",
    "BLOCK_J": 1,
}


@triton.jit
def _exp_up_to_80(exponents):
    """exp overflows fp32 from 88 on. A larger exponent counts as 80, a NaN stays one; see `reference`."""
    return tl.exp(tl.where(exponents > 80.0, 80.0, exponents))


@triton.jit(do_not_specialize=["N", "L"])
def group_loss_kernel(
    log_probs_ptr,
    mask_ptr,
    advantages_ptr,
    rewards_ptr,
    scores_ptr,
    valid_ptr,
    old_log_probs_ptr,
    ref_log_probs_ptr,
    kept_log_probs_ptr,
    kept_advantages_ptr,
    coefficients_ptr,
    partials_ptr,
    N,
    G,
    L,
    lowest,
    highest,
    beta,
    eps: tl.float64,
    anchor: tl.float64,
    window: tl.float64,
    temperature: tl.float64,
    NORMALIZE_STD: tl.constexpr,
    RANK_TRANSFORM: tl.constexpr,
    BLOCK_J: tl.constexpr,
    MEAN_OF_TOKENS: tl.constexpr,
    SEQUENCE_LEVEL: tl.constexpr,
    CAPS_RATIO: tl.constexpr,
    ADD_KL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    lowest, highest, beta = tl.cast(lowest, tl.float32), tl.cast(highest, tl.float32), tl.cast(beta, tl.float32)
    # A block of completions of whatever groups where their advantages are known, else one group.
    first = tl.program_id(0).to(tl.int64) * G
    completions = first + tl.arange(0, BLOCK_N)
    is_completion = (tl.arange(0, BLOCK_N) < G) & (completions < N)
    exists = is_completion
    if valid_ptr is not None:
        exists = tl.load(valid_ptr + completions, mask=exists, other=0) != 0
    rows = completions[:, None] * L
    offsets_l = tl.arange(0, BLOCK_L)

    # Lengths come first: the coefficient of a token depends on how many there are, the ratio maybe on all of them.
    counts = tl.zeros([BLOCK_N, BLOCK_L], dtype=tl.int32)
    log_ratios = tl.zeros([BLOCK_N, BLOCK_L], dtype=tl.float32)
    for start in range(0, L, BLOCK_L):
        places = rows + (start + offsets_l)[None, :]
        is_token = exists[:, None] & (start + offsets_l < L)[None, :]
        is_token = tl.load(mask_ptr + places, mask=is_token, other=0) != 0
        counts += is_token.to(tl.int32)
        if SEQUENCE_LEVEL and old_log_probs_ptr is not None:
            log_probs = tl.load(log_probs_ptr + places, mask=is_token, other=0.0).to(tl.float32)
            log_ratios += log_probs - tl.load(old_log_probs_ptr + places, mask=is_token, other=0.0).to(tl.float32)
    lengths = tl.sum(counts, 1)
    known_lengths = tl.maximum(lengths, 1).to(tl.float32)
    if valid_ptr is None:
        exists = lengths > 0
    if rewards_ptr is None:
        advantages = tl.load(advantages_ptr + completions, mask=exists, other=0.0).to(tl.float32)
    else:
        advantages = relative_advantages_of(
            rewards_ptr,
            scores_ptr,
            valid_ptr,
            first,
            G,
            eps,
            anchor,
            window,
            temperature,
            NORMALIZE_STD,
            RANK_TRANSFORM,
            BLOCK_N,
            BLOCK_J,
        ).to(tl.float32)
    tl.store(kept_advantages_ptr + completions, advantages, mask=is_completion)
    advantages = advantages[:, None]
    unit = tl.full([BLOCK_N], 1.0, dtype=tl.float32)
    if MEAN_OF_TOKENS:
        unit = 1.0 / known_lengths
    unit = unit[:, None]
    mean_log_ratio = (tl.sum(log_ratios, 1) / known_lengths)[:, None]

    losses = tl.zeros([BLOCK_N, BLOCK_L], dtype=tl.float32)
    kls = tl.zeros([BLOCK_N, BLOCK_L], dtype=tl.float32)
    clipped = tl.zeros([BLOCK_N, BLOCK_L], dtype=tl.int32)
    for start in range(0, L, BLOCK_L):
        places = rows + (start + offsets_l)[None, :]
        is_inside = is_completion[:, None] & (start + offsets_l < L)[None, :]
        is_token = is_inside & exists[:, None]
        is_token = tl.load(mask_ptr + places, mask=is_token, other=0) != 0
        log_probs = tl.load(log_probs_ptr + places, mask=is_token, other=0.0).to(tl.float32)
        tl.store(kept_log_probs_ptr + places, log_probs, mask=is_inside)

        old_log_probs = log_probs
        if old_log_probs_ptr is not None:
            old_log_probs = tl.load(old_log_probs_ptr + places, mask=is_token, other=0.0).to(tl.float32)
        log_ratio = log_probs - old_log_probs
        if SEQUENCE_LEVEL and old_log_probs_ptr is not None:
            log_ratio = tl.zeros([BLOCK_N, BLOCK_L], dtype=tl.float32) + mean_log_ratio
        ratio = _exp_up_to_80(log_ratio)
        if CAPS_RATIO:
            is_clipped = (ratio > highest) & (advantages > 0)
            slope = -tl.where(ratio > highest, highest, ratio) * advantages
            loss = slope * log_probs
        else:
            is_clipped = ((ratio < lowest) & (advantages < 0)) | ((ratio > highest) & (advantages > 0))
            bound = tl.where(advantages > 0, highest, lowest)
            loss = -tl.where(is_clipped, bound, ratio) * advantages
            slope = tl.where(is_clipped | (log_ratio > 80.0), 0.0, -ratio * advantages)

        if ref_log_probs_ptr is not None:
            distance = tl.load(ref_log_probs_ptr + places, mask=is_token, other=0.0).to(tl.float32) - log_probs
            ref_ratio = _exp_up_to_80(distance)
            kl = ref_ratio - tl.where(distance > 80.0, 80.0, distance) - 1.0
            kls += tl.where(is_token, kl, 0.0)
            if ADD_KL:
                loss += beta * kl
                slope += tl.where(distance > 80.0, 0.0, beta * (1.0 - ref_ratio))
        losses += tl.where(is_token, loss, 0.0)
        clipped += (is_token & is_clipped).to(tl.int32)
        if coefficients_ptr is not None:
            tl.store(coefficients_ptr + places, tl.where(is_token, slope * unit, 0.0), mask=is_inside)

    # [5, programs], so that the last kernel reads each kind in one piece.
    partials_ptr += tl.program_id(0)
    programs = tl.num_programs(0)
    tl.store(partials_ptr, tl.sum(tl.sum(losses * unit, 1), 0))
    tl.store(partials_ptr + programs, tl.sum(tl.sum(kls, 1), 0))
    tl.store(partials_ptr + 2 * programs, tl.sum(tl.sum(clipped, 1), 0).to(tl.float32))
    tl.store(partials_ptr + 3 * programs, tl.sum(lengths, 0).to(tl.float32))
    tl.store(partials_ptr + 4 * programs, tl.sum(exists.to(tl.int32), 0).to(tl.float32))


@triton.jit(do_not_specialize=["P", "L"])
def finish_group_loss_kernel(
    partials_ptr,
    denominator_ptr,
    loss_ptr,
    kl_ptr,
    clip_fraction_ptr,
    scale_ptr,
    P,
    L,
    denominator: tl.float64,
    COUNTED: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """fp64, so that counts of tokens beyond 2^24 are whole numbers still."""
    losses = tl.zeros([BLOCK_P], dtype=tl.float64)
    kls = tl.zeros([BLOCK_P], dtype=tl.float64)
    clipped = tl.zeros([BLOCK_P], dtype=tl.float64)
    tokens = tl.zeros([BLOCK_P], dtype=tl.float64)
    sequences = tl.zeros([BLOCK_P], dtype=tl.float64)
    for start in range(0, P, BLOCK_P):
        programs = start + tl.arange(0, BLOCK_P)
        inside = programs < P
        losses += tl.load(partials_ptr + programs, mask=inside, other=0.0)
        kls += tl.load(partials_ptr + P + programs, mask=inside, other=0.0)
        clipped += tl.load(partials_ptr + 2 * P + programs, mask=inside, other=0.0)
        tokens += tl.load(partials_ptr + 3 * P + programs, mask=inside, other=0.0)
        sequences += tl.load(partials_ptr + 4 * P + programs, mask=inside, other=0.0)

    num_tokens = tl.maximum(tl.sum(tokens, 0), 1.0)
    num_sequences = tl.sum(sequences, 0)
    if denominator_ptr is not None:
        scale = 1.0 / tl.load(denominator_ptr).to(tl.float64)
    elif COUNTED == "tokens":
        scale = 1.0 / num_tokens
    elif COUNTED == "sequences":
        scale = 1.0 / tl.maximum(num_sequences, 1.0)
    elif COUNTED == "positions":
        scale = 1.0 / tl.maximum(num_sequences * L, 1.0)
    else:
        scale = 1.0 / denominator
    tl.store(loss_ptr, (tl.sum(losses, 0) * scale).to(tl.float32))
    tl.store(kl_ptr, (tl.sum(kls, 0) / num_tokens).to(tl.float32))
    tl.store(clip_fraction_ptr, (tl.sum(clipped, 0) / num_tokens).to(tl.float32))
    tl.store(scale_ptr, tl.cast(scale, tl.float32))


class LossOptions(NamedTuple):
    loss_type: LossType
    importance_level: ImportanceLevel
    epsilon_low: float
    epsilon_high: float
    beta: float

    @property
    def kind(self) -> LossKind:
        return LOSS_KINDS[self.loss_type]

    @property
    def sequence_level(self) -> bool:
        """One ratio per completion."""
        return self.kind.sequence_level or self.importance_level == "sequence"


def _forward(
    log_probs: torch.Tensor,
    mask: torch.Tensor,
    advantages: torch.Tensor | GroupRewards,
    valid: torch.Tensor | None,
    old_log_probs: torch.Tensor | None,
    ref_log_probs: torch.Tensor | None,
    denominator: float | torch.Tensor | None,
    options: LossOptions,
    *,
    with_coefficients: bool,
) -> tuple[GRPOLoss, torch.Tensor | None, torch.Tensor]:
    """The loss, fp32 [B, G, L] dloss / dlog_probs times the denominator if wanted, and 1 / denominator."""
    B, G, L = log_probs.shape
    device = log_probs.device
    kind = options.kind
    BLOCK_L = min(_LONGEST_ROW, triton.next_power_of_2(max(L, 1)))
    source: dict[str, Any]
    if isinstance(advantages, GroupRewards):
        num_warps = advantages.num_warps
        BLOCK_N = triton.next_power_of_2(G)
        BLOCK_L = min(BLOCK_L, max(1, _TOKENS_A_WARP * num_warps // BLOCK_N))
        programs = B
        source = {"advantages_ptr": None, **advantages.arguments()}
    else:
        num_warps = 4
        BLOCK_N = min(_TILE // BLOCK_L, triton.next_power_of_2(max(B * G, 1)))
        programs = triton.cdiv(B * G, BLOCK_N)
        source = {"advantages_ptr": advantages.contiguous(), "G": BLOCK_N, **_NO_REWARDS}
    kept_log_probs = torch.empty(log_probs.shape, dtype=torch.float32, device=device)
    kept_advantages = torch.empty(B, G, dtype=torch.float32, device=device)
    coefficients = torch.empty_like(kept_log_probs) if with_coefficients else None
    partials = torch.empty(5, programs, dtype=torch.float32, device=device)
    launch(
        group_loss_kernel,
        (programs,),
        num_warps=num_warps,
        max_registers=REGISTERS,
        log_probs_ptr=log_probs.contiguous(),
        mask_ptr=mask.contiguous(),
        valid_ptr=None if valid is None else valid.contiguous(),
        old_log_probs_ptr=None if old_log_probs is None else old_log_probs.contiguous(),
        ref_log_probs_ptr=None if ref_log_probs is None else ref_log_probs.contiguous(),
        kept_log_probs_ptr=kept_log_probs,
        kept_advantages_ptr=kept_advantages,
        coefficients_ptr=coefficients,
        partials_ptr=partials,
        N=B * G,
        L=L,
        lowest=1.0 - float(options.epsilon_low),
        highest=float(options.epsilon_high) + (0.0 if kind.caps_ratio else 1.0),
        beta=float(options.beta),
        MEAN_OF_TOKENS=kind.mean_over_tokens,
        SEQUENCE_LEVEL=options.sequence_level,
        CAPS_RATIO=kind.caps_ratio,
        ADD_KL=options.beta > 0,
        BLOCK_N=BLOCK_N,
        BLOCK_L=BLOCK_L,
        **source,
    )
    loss, kl, clip_fraction, scale = (torch.empty((), dtype=torch.float32, device=device) for _ in range(4))
    is_tensor = isinstance(denominator, torch.Tensor)
    launch(
        finish_group_loss_kernel,
        (1,),
        num_warps=4,
        max_registers=REGISTERS,
        partials_ptr=partials,
        denominator_ptr=denominator if is_tensor else None,
        loss_ptr=loss,
        kl_ptr=kl,
        clip_fraction_ptr=clip_fraction,
        scale_ptr=scale,
        P=programs,
        L=L,
        denominator=0.0 if denominator is None or is_tensor else float(denominator),
        COUNTED=kind.counts if denominator is None else "given",
        BLOCK_P=_PARTIALS_AT_ONCE,
    )
    return GRPOLoss(loss, kept_log_probs, kept_advantages, kl, clip_fraction), coefficients, scale


class _GroupLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_probs: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, ...]:
        result, coefficients, scale = _forward(log_probs, *arguments, with_coefficients=ctx.needs_input_grad[0])
        ctx.save_for_backward(coefficients, scale)
        ctx.dtype = log_probs.dtype
        ctx.num_constants = len(arguments)
        ctx.mark_non_differentiable(*result[1:])
        return tuple(result)

    @staticmethod
    @differentiable_once("grpo_loss")
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        coefficients, scale = ctx.saved_tensors
        return (coefficients * (gradient * scale)).to(ctx.dtype), *(None for _ in range(ctx.num_constants))


def triton_grpo_loss(
    log_probs: torch.Tensor,
    mask: torch.Tensor,
    advantages: torch.Tensor | GroupRewards,
    valid: torch.Tensor | None,
    old_log_probs: torch.Tensor | None,
    ref_log_probs: torch.Tensor | None,
    denominator: float | torch.Tensor | None,
    options: LossOptions,
) -> GRPOLoss:
    """`grpo_loss` of checked arguments. Advantages made of rewards need `valid`, and groups of at most MAX_GROUP."""
    return GRPOLoss(
        *apply(
            "grpo_loss",
            _GroupLoss,
            log_probs,
            mask,
            advantages,
            valid,
            old_log_probs,
            ref_log_probs,
            denominator,
            options,
        )
    )
