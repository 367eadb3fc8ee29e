"""The weights and advantages of `advantage` in Triton.

    sigma_i = #{negatives j: s_j > s_i, or s_j = s_i and j < i}          x_i = -|phi(sigma_i) - phi(anchor)|
    T_i = min(1, exp((x_i - lambda) / tau)), sum T_i = window            w_i = T_i |N| / window
    A_i = (r_i - mean r) / (std r + eps), times w_i for negatives

rewards r and scores s [B, G]; weights and advantages are constants for the gradient. One program a group of at most
512 completions; everything but the comparison of scores is fp64, as a rounded rank distance over a small temperature
is not what was asked for, and because G numbers cost nothing.

There is no sort. Ranks are counted. For the threshold let mass(y) = sum_j min(1, exp((x_j - y) / tau)), which falls in
y: the solution saturates the x above level and shares the rest of the window among the others as a softmax does, where
level is the largest of the x with mass(level) >= window. To the right of the anchor x falls with the rank, to the left
it rises, so a binary search on each side finds it.

One call: 13 bytes (rewards, scores, valid, advantages), G comparisons and some 2 log2 G exps a completion. 64 groups of
16: 13 KB, 3 ns at 4.3 TB/s, so what it takes is a launch and a chain of some 2 log2 G = 8 reductions within a warp,
each a few hundred cycles with its exp: predicted 5 us, and 15 us for G = 512. Times on a GPU: not measured.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ...launch import REGISTERS, launch
from ...types import TAWin
from ..log_prob.lm_head import accumulation_dtype
from .weights import relative_advantages, window_weights

MAX_GROUP = 512
_RANKS_AT_ONCE = 8


@triton.jit
def _exists(valid_ptr, offsets, inside):
    if valid_ptr is not None:
        inside = tl.load(valid_ptr + offsets, mask=inside, other=0) != 0
    return inside


@triton.jit
def _is_negative(rewards_ptr, offsets, exists):
    """A reward <= 0. Without rewards all that exist are negatives."""
    if rewards_ptr is not None:
        exists = exists & (tl.load(rewards_ptr + offsets, mask=exists, other=1.0).to(tl.float64) <= 0.0)
    return exists


@triton.jit
def _load_scores(scores_ptr, offsets, wanted):
    scores = tl.load(scores_ptr + offsets, mask=wanted, other=0.0)
    if scores_ptr.dtype.element_ty != tl.float64:
        scores = scores.to(tl.float32)
    return scores


@triton.jit
def _closeness(ranks, size, anchor, RANK_TRANSFORM: tl.constexpr):
    """x = -|phi(rank) - phi(anchor)|, fp64 of the shape of ranks (fp64)."""
    anchors = tl.full(ranks.shape, anchor, dtype=tl.float64)
    if RANK_TRANSFORM == "log2":
        ranks = tl.log2(ranks + 1.0)
        anchors = tl.log2(anchors + 1.0)
    if RANK_TRANSFORM == "fraction":
        ranks = ranks / size
        anchors = anchors / size
    return -tl.abs(ranks - anchors)


@triton.jit
def _nearest_with_mass(x, first, step, count, size, anchor, window, temperature, RANK_TRANSFORM: tl.constexpr):
    """The first of the ranks first, first + step, ... (count of them) at whose x the mass is the window's, or -1.

    They go away from the anchor, so x falls and the mass rises: a binary search.
    """
    low = 0
    high = count
    while low < high:
        middle = (low + high) // 2
        level = _closeness((first + step * middle).to(tl.float64), size, anchor, RANK_TRANSFORM)
        mass = tl.sum(tl.exp(tl.minimum(x - level, 0.0) / temperature), 0)
        if mass >= window:
            high = middle
        else:
            low = middle + 1
    return tl.where(low < count, first + step * low, -1)


@triton.jit
def _window_weights(
    scores_ptr,
    rewards_ptr,
    valid_ptr,
    first,
    G,
    anchor,
    window,
    temperature,
    RANK_TRANSFORM: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """The weights w of the group that begins at `first`, fp64 [BLOCK_G]: 1 for what is no negative."""
    places = tl.arange(0, BLOCK_G)
    is_negative = _exists(valid_ptr, first + places, places < G)
    is_negative = _is_negative(rewards_ptr, first + places, is_negative)
    scores = _load_scores(scores_ptr, first + places, is_negative)

    # Ranks by counting, a few of the others at a time; they are in the first-level cache.
    before = tl.zeros([BLOCK_G, BLOCK_J], dtype=tl.int32)
    for start in range(0, G, BLOCK_J):
        others = start + tl.arange(0, BLOCK_J)
        is_rival = _exists(valid_ptr, first + others, others < G)
        is_rival = _is_negative(rewards_ptr, first + others, is_rival)
        other_scores = _load_scores(scores_ptr, first + others, is_rival)[None, :]
        is_before = other_scores > scores[:, None]
        is_before |= (other_scores == scores[:, None]) & (others[None, :] < places[:, None])
        before += (is_before & is_rival[None, :]).to(tl.int32)
    ranks = tl.sum(before, 1)  # sigma

    size = tl.sum(is_negative.to(tl.int32), 0)
    known_size = tl.maximum(size, 1).to(tl.float64)
    x = _closeness(ranks.to(tl.float64), known_size, anchor, RANK_TRANSFORM)
    x = tl.where(is_negative, x, float("-inf"))

    # Beyond the last rank, where the anchor is too large, there is no right side.
    left = tl.minimum(tl.ceil(tl.full([], anchor, dtype=tl.float64)), size.to(tl.float64)).to(tl.int32)
    on_left = _nearest_with_mass(x, left - 1, -1, left, known_size, anchor, window, temperature, RANK_TRANSFORM)
    on_right = _nearest_with_mass(x, left, 1, size - left, known_size, anchor, window, temperature, RANK_TRANSFORM)
    # The level is read from x itself, so that its own negative does not lie above it by rounding.
    is_candidate = is_negative & ((ranks == on_left) | (ranks == on_right))
    level = tl.max(tl.where(is_candidate, x, float("-inf")), 0)
    level = tl.where(level > float("-inf"), level, 0.0)  # none: the window is wider than the negatives are many

    is_saturated = x > level
    shares = tl.exp(tl.minimum(x - level, 0.0) / temperature)
    saturated = tl.sum(is_saturated.to(tl.int32), 0).to(tl.float64)
    tail = tl.maximum(tl.sum(tl.where(is_saturated, 0.0, shares), 0), 1.0)  # that of the level itself is 1
    raw = tl.where(is_saturated, 1.0, shares * (window - saturated) / tail)  # T
    weights = tl.where(known_size > window, raw * known_size / window, 1.0)
    return tl.where(is_negative, weights, 1.0)


@triton.jit
def tawin_weights_kernel(
    scores_ptr,
    negatives_ptr,
    weights_ptr,
    G,
    anchor: tl.float64,
    window: tl.float64,
    temperature: tl.float64,
    RANK_TRANSFORM: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * G
    weights = _window_weights(
        scores_ptr,
        None,
        negatives_ptr,
        first,
        G,
        anchor,
        window,
        temperature,
        RANK_TRANSFORM,
        BLOCK_G,
        BLOCK_J,
    )
    places = tl.arange(0, BLOCK_G)
    tl.store(weights_ptr + first + places, weights.to(tl.float32), mask=places < G)


@triton.jit
def relative_advantages_of(
    rewards_ptr,
    scores_ptr,
    valid_ptr,
    first,
    G,
    eps,
    anchor,
    window,
    temperature,
    NORMALIZE_STD: tl.constexpr,
    RANK_TRANSFORM: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """The advantages of the group that begins at `first`, fp64 [BLOCK_G]; without scores_ptr there is no window."""
    places = tl.arange(0, BLOCK_G)
    # Weights before advantages: the fewer registers are taken while ranks are counted.
    weights = tl.full([BLOCK_G], 1.0, dtype=tl.float64)
    if scores_ptr is not None:
        weights = _window_weights(
            scores_ptr,
            rewards_ptr,
            valid_ptr,
            first,
            G,
            anchor,
            window,
            temperature,
            RANK_TRANSFORM,
            BLOCK_G,
            BLOCK_J,
        )

    exists = _exists(valid_ptr, first + places, places < G)
    rewards = tl.load(rewards_ptr + first + places, mask=exists, other=0.0).to(tl.float64)

    # Equal rewards teach nothing: exactly 0, free of the rounding of the mean.
    largest = tl.max(tl.where(exists, rewards, float("-inf")), 0)
    smallest = tl.min(tl.where(exists, rewards, float("inf")), 0)
    count = tl.sum(exists.to(tl.int32), 0)
    # In units of the power of two below the largest, so that no square overflows or is lost: the bits of its exponent.
    extent = tl.maximum(tl.max(tl.abs(rewards), 0), 9.332636185032189e-302)  # 2^-1000
    unit = (extent.to(tl.int64, bitcast=True) & 0x7FF0000000000000).to(tl.float64, bitcast=True)
    centered = rewards / unit
    mean = tl.sum(centered, 0) / tl.maximum(count, 1).to(tl.float64)
    centered = tl.where(exists, centered - mean, 0.0)
    advantages = tl.where(largest > smallest, centered, 0.0)
    if NORMALIZE_STD:
        variance = tl.sum(centered * centered, 0) / tl.maximum(count - 1, 1).to(tl.float64)
        advantages /= tl.where(largest > smallest, tl.sqrt(variance) + eps / unit, 1.0)
    else:
        advantages *= unit
    return advantages * weights


@triton.jit
def group_advantages_kernel(
    rewards_ptr,
    scores_ptr,
    valid_ptr,
    advantages_ptr,
    G,
    eps: tl.float64,
    anchor: tl.float64,
    window: tl.float64,
    temperature: tl.float64,
    NORMALIZE_STD: tl.constexpr,
    RANK_TRANSFORM: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * G
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
        BLOCK_G,
        BLOCK_J,
    )
    places = tl.arange(0, BLOCK_G)
    tl.store(advantages_ptr + first + places, advantages.to(tl.float32), mask=places < G)


class GroupRewards(NamedTuple):
    """What the advantages of groups are made of."""

    rewards: torch.Tensor  # [B, G]
    scores: torch.Tensor | None  # [B, G], read with tawin only
    tawin: TAWin | None
    normalize_std: bool
    eps: float

    @property
    def num_warps(self) -> int:
        """Of a kernel of one program a group."""
        return _warps(self.rewards.shape[1])

    def arguments(self) -> dict[str, Any]:
        """Those of a kernel of one program a group, but for `valid_ptr`."""
        tawin = TAWin() if self.tawin is None else self.tawin  # without scores the kernel reads none of it
        return {
            "rewards_ptr": self.rewards.contiguous(),
            "scores_ptr": None if self.tawin is None or self.scores is None else self.scores.contiguous(),
            "eps": float(self.eps),
            "NORMALIZE_STD": self.normalize_std,
            **_window_arguments(tawin, self.rewards.shape[1]),
        }


def _window_arguments(tawin: TAWin, G: int) -> dict[str, Any]:
    return {
        "G": G,
        "anchor": float(tawin.anchor),
        "window": float(tawin.window),
        "temperature": float(tawin.temperature),
        "RANK_TRANSFORM": tawin.rank_transform,
        "BLOCK_J": min(triton.next_power_of_2(G), _RANKS_AT_ONCE),
    }


def _warps(G: int) -> int:
    return max(1, triton.next_power_of_2(G) // 64)


def triton_group_advantages(groups: GroupRewards, valid: torch.Tensor | None) -> torch.Tensor:
    """`group_advantages` of checked arguments, fp32 [B, G]. Groups larger than a program takes run in plain PyTorch."""
    rewards = groups.rewards
    B, G = rewards.shape
    if G > MAX_GROUP:
        valid = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid
        rewards = rewards.to(accumulation_dtype(rewards))
        return relative_advantages(
            rewards, groups.scores, valid, groups.tawin, groups.normalize_std, groups.eps
        ).float()
    advantages = torch.empty(rewards.shape, dtype=torch.float32, device=rewards.device)
    launch(
        group_advantages_kernel,
        (B,),
        num_warps=groups.num_warps,
        max_registers=REGISTERS,
        valid_ptr=None if valid is None else valid.contiguous(),
        advantages_ptr=advantages,
        BLOCK_G=triton.next_power_of_2(G),
        **groups.arguments(),
    )
    return advantages


def triton_tawin_weights(scores: torch.Tensor, negatives: torch.Tensor, tawin: TAWin) -> torch.Tensor:
    """`tawin_weights` of checked arguments, fp32 [B, G]. Groups larger than a program takes run in plain PyTorch."""
    B, G = scores.shape
    if G > MAX_GROUP:
        return window_weights(scores, negatives, tawin).float()
    weights = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
    launch(
        tawin_weights_kernel,
        (B,),
        num_warps=_warps(G),
        max_registers=REGISTERS,
        scores_ptr=scores.contiguous(),
        negatives_ptr=negatives.contiguous(),
        weights_ptr=weights,
        BLOCK_G=triton.next_power_of_2(G),
        **_window_arguments(tawin, G),
    )
    return weights
