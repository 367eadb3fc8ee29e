"""The clip at its bounds: the gradient is our own choice, the same in kernels and reference and on every PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
from tawin_kernels import grpo_loss

from ...devices import DEVICE

clamp = torch.Tensor.clamp


class Clamp(torch.autograd.Function):
    """`torch.clamp` with a gradient of one's choice at its bounds: 1 up to PyTorch 2.13, 0 from 2.14 on."""

    @staticmethod
    def forward(ctx, values, low, high, at_bounds):
        ctx.save_for_backward(values)
        ctx.rest = (low, high, at_bounds)
        return clamp(values, low, high)

    @staticmethod
    def backward(ctx, gradient):
        (values,), (low, high, at_bounds) = ctx.saved_tensors, ctx.rest
        slope = (clamp(values, low, high) == values).to(gradient.dtype)
        for bound in (low, high):
            if bound is not None:
                slope = torch.where(values == bound, at_bounds, slope)
        return gradient * slope, None, None, None


@pytest.mark.parametrize("at_bounds", [0.0, 1.0])
@pytest.mark.parametrize(
    ("epsilon", "log_ratio"), [(0.0, 0.0), (0.5, math.log(1.5)), (0.5, math.log(0.5)), (0.2, 80.0)]
)
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_a_ratio_at_a_bound_has_its_full_gradient_whatever_that_of_clamp_is(
    monkeypatch, at_bounds, epsilon, log_ratio, impl
):
    def clamp_by_version(values, min=None, max=None):
        return Clamp.apply(values, min, max, at_bounds) if values.requires_grad else clamp(values, min, max)

    monkeypatch.setattr(torch.Tensor, "clamp", clamp_by_version)
    advantages = torch.tensor([[1.0, -1.0, 2.0]], device=DEVICE)
    log_probs = torch.full((1, 3, 2), log_ratio, device=DEVICE).requires_grad_()
    ratio = log_probs.detach().exp()
    mask = torch.ones(1, 3, 2, dtype=torch.bool, device=DEVICE)
    loss = grpo_loss(
        log_probs,
        mask,
        advantages,
        old_log_probs=torch.zeros_like(log_probs),
        epsilon_low=epsilon,
        epsilon_high=epsilon,
        loss_type="dapo",
        impl=impl,
    )
    loss.loss.backward()
    lowest, highest = 1.0 - epsilon, 1.0 + epsilon
    A = advantages[..., None]
    is_clipped = ((ratio < lowest) & (A < 0)) | ((ratio > highest) & (A > 0))
    expected = torch.where(is_clipped, 0.0, -ratio * A) / 6
    torch.testing.assert_close(log_probs.grad, expected, rtol=1e-5, atol=1e-6)
    assert loss.clip_fraction.item() == pytest.approx(is_clipped.float().mean().item())
