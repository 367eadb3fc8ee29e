"""Advantages of rewards that fp32 sums lose, offsets and extremes: each way to them against exact numbers."""

from __future__ import annotations

from decimal import Decimal, localcontext
from itertools import product

import pytest
import torch
from tawin_kernels import group_advantages, reference, tawin_grpo_loss
from tawin_kernels.ops.advantage.kernels import MAX_GROUP

from ...devices import DEVICE


def exact(rewards: torch.Tensor, valid: torch.Tensor, normalize_std: bool, eps: float) -> torch.Tensor:
    """From the formula, in decimal numbers of 700 digits."""
    result = torch.zeros(rewards.shape, dtype=torch.float64)
    with localcontext() as context:
        context.prec = 700
        for b in range(len(rewards)):
            places = [g for g in range(rewards.shape[1]) if valid[b, g]]
            values = [Decimal(rewards[b, g].item()) for g in places]
            mean = sum(values) / len(values)
            std = (sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)).sqrt()
            below = std + Decimal(eps) if normalize_std else Decimal(1)
            for g, value in zip(places, values, strict=True):
                result[b, g] = float((value - mean) / below) if below else 0.0
    return result


def with_offset(offset: float, spread: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    noise = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (offset + spread * noise).to(dtype)


REWARDS = {
    "offset 1e4": with_offset(1e4, 0.01),
    "offset 1e7": with_offset(1e7, 1.0),
    "1e30 beside 1": torch.tensor([[1e30, 1.0, 0.0, -1.0]]),
    "squares beyond fp32": torch.tensor([[3e38, 0.0, 3e38, 3e38], [1e20, 0.0, 1e20, 1e20]]),
    "squares below fp32": torch.tensor([[1e-30, 0.0, 1e-30, 1e-30]]),
    "the smallest fp32": torch.tensor([[1e-45, 0.0, 0.0, 0.0]]),
    "fp16": with_offset(1000.0, 2.0, torch.float16),
    "bf16": with_offset(1000.0, 20.0, torch.bfloat16),
    "fp64, squares beyond fp64": torch.tensor([[1e300, 0.0, 1e300, -1e300]], dtype=torch.float64),
    "fp64, the largest": torch.tensor([[1.7e308, -1.7e308, 1.7e308, 1.7e308]], dtype=torch.float64),
    "fp64, squares below fp64": torch.tensor([[1e-200, 0.0, 0.0, -1e-200]], dtype=torch.float64),
    "fp64, the smallest": torch.tensor([[5e-324, 0.0, 0.0, 0.0]], dtype=torch.float64),
    "a group larger than a program": with_offset(1e4, 0.01).flatten().repeat(9)[None, : MAX_GROUP + 1],
}


def of_the_loss(rewards, valid, normalize_std, eps, impl):
    B, G = rewards.shape
    hidden, weight = torch.zeros(B, G, 1, 2, device=DEVICE), torch.zeros(3, 2, device=DEVICE)
    token_ids = torch.zeros(B, G, 1, dtype=torch.int64, device=DEVICE)
    options = {"tawin": None, "normalize_std": normalize_std, "eps": eps, "impl": impl}
    return tawin_grpo_loss(hidden, weight, token_ids, valid[..., None], rewards, None, **options).advantages


WAYS = {
    "reference": lambda rewards, valid, normalize_std, eps: reference.group_advantages(
        rewards, valid=valid, normalize_std=normalize_std, eps=eps
    ),
    "auto": lambda rewards, valid, normalize_std, eps: group_advantages(
        rewards, valid=valid, normalize_std=normalize_std, eps=eps
    ),
    "triton": lambda rewards, valid, normalize_std, eps: group_advantages(
        rewards, valid=valid, normalize_std=normalize_std, eps=eps, impl="triton"
    ),
    "loss of the reference": lambda *arguments: of_the_loss(*arguments, impl="reference"),
    "loss in Triton": lambda *arguments: of_the_loss(*arguments, impl="triton"),
}


def takes(way: str, rewards: torch.Tensor) -> bool:
    """The kernels take groups of at most MAX_GROUP, and that of the advantages alone no fp64."""
    if rewards.shape[1] > MAX_GROUP:
        return "riton" not in way
    return way != "triton" or rewards.dtype != torch.float64


@pytest.mark.parametrize(
    ("way", "name"), [(way, name) for name in REWARDS for way in WAYS if takes(way, REWARDS[name])]
)
def test_advantages_are_those_of_exact_numbers(way, name):
    rewards = REWARDS[name].to(DEVICE)
    everyone = torch.ones_like(rewards, dtype=torch.bool)
    some = everyone & (torch.arange(rewards.shape[1], device=DEVICE) != 2)
    # Every pair of the three; the two ways by kernels of their own have all eight.
    pairwise = ((everyone, True, 1e-4), (everyone, False, 0.0), (some, True, 0.0), (some, False, 1e-4))
    for valid, normalize_std, eps in (
        pairwise if "loss" in way else product((everyone, some), (True, False), (1e-4, 0.0))
    ):
        advantages = WAYS[way](rewards, valid, normalize_std, eps)
        expected = exact(rewards, valid, normalize_std, eps).to(advantages.device)
        # Rounded once at the end; what is beyond fp32 is infinite in it.
        tolerance = {"atol": 3e-7 if normalize_std else 0.0, "rtol": 3e-7}
        torch.testing.assert_close(advantages, expected.to(advantages.dtype), **tolerance)


def test_the_values_that_users_reported():
    assert group_advantages(torch.tensor([[1e30, 1.0, 0.0, -1.0]])).tolist() == [[1.5, -0.5, -0.5, -0.5]]
    assert group_advantages(torch.tensor([[3e38, 0.0, 3e38, 3e38]])).tolist() == [[0.5, -1.5, 0.5, 0.5]]
