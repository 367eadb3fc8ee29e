"""The seams of the loss: a row in the table of types, and advantages of one's own."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from tawin_kernels import TAWin, group_advantages, grpo_loss, reference, tawin_grpo_loss
from tawin_kernels.ops.loss.types import LOSS_KINDS, LossKind, LossType

from ...devices import DEVICE

V, H = 19, 8
LEAVES = ("hidden", "lm_head_weight")


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Four groups of five: live, dead, all positive, and live with a completion that does not exist."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.rand(4, 5, 3, generator=generator) < 0.7
    mask[..., 0] = True
    mask[3, 4] = False
    tensors = {
        "hidden": torch.randn(4, 5, 3, H, generator=generator),
        "lm_head_weight": torch.randn(V, H, generator=generator),
        "token_ids": torch.randint(0, V, (4, 5, 3), generator=generator).masked_fill(~mask, -100),
        "mask": mask,
        "rewards": torch.tensor([[0.0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]]),
        "scores": torch.randn(4, 5, generator=generator).masked_fill(~mask.any(-1), -math.inf),
    }
    return {name: tensor.to(DEVICE) for name, tensor in tensors.items()}


def run(op, tensors: dict, **options) -> tuple:
    """The result, and the gradients of the leaves."""
    leaves = [tensors[name].detach().requires_grad_() for name in LEAVES]
    result = op(**{**tensors, **dict(zip(LEAVES, leaves, strict=True))}, **options)
    return result, torch.autograd.grad(result.loss, leaves)


def test_the_names_of_the_signature_are_those_of_the_table():
    assert get_args(LossType) == tuple(LOSS_KINDS)


def test_a_new_combination_is_a_row_for_kernel_and_reference(monkeypatch):
    # Means over tokens, one ratio per completion, divided by positions: no type of today.
    monkeypatch.setitem(LOSS_KINDS, "mine", LossKind("positions", mean_over_tokens=True, sequence_level=True))
    log_probs = -3 * torch.rand(2, 3, 4, device=DEVICE)
    mask = torch.ones(2, 3, 4, dtype=torch.bool, device=DEVICE)
    mask[0, 1, 2:] = False
    advantages = torch.randn(2, 3, device=DEVICE)
    options = {"old_log_probs": log_probs - torch.randn(2, 3, 4, device=DEVICE), "loss_type": "mine"}
    found = grpo_loss(log_probs, mask, advantages, **options, impl="triton")
    expected = reference.grpo_loss(log_probs, mask, advantages, **options)
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-6, rtol=1e-5)
    as_gspo = grpo_loss(log_probs, mask, advantages, **{**options, "loss_type": "gspo"}).loss
    torch.testing.assert_close(expected.loss, as_gspo / 4, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("all_log_probs", [True, False])
@pytest.mark.parametrize("freezes_head", [True, False])
def test_advantages_of_ones_own_stand_for_rewards_and_scores(batch, impl, all_log_probs, freezes_head):
    tawin = TAWin(anchor=1, window=1.5)
    valid = batch["mask"].any(-1)
    made = group_advantages(batch["rewards"], batch["scores"], tawin=tawin, valid=valid)
    own = {name: tensor for name, tensor in batch.items() if name not in ("rewards", "scores")}
    options = {"all_log_probs": all_log_probs, "impl": impl}
    if freezes_head:  # log-probs and gradient in one pass
        hidden = batch["hidden"].requires_grad_()
        expected = tawin_grpo_loss(**batch, tawin=tawin, **options)
        expected_gradient = torch.autograd.grad(expected.loss, hidden)
        found = tawin_grpo_loss(**own, advantages=made, **options)
        gradient = torch.autograd.grad(found.loss, hidden)
    else:
        expected, expected_gradient = run(tawin_grpo_loss, batch, tawin=tawin, **options)
        found, gradient = run(tawin_grpo_loss, own, advantages=made, **options)
    for value, of_rewards in zip((*found, *gradient), (*expected, *expected_gradient), strict=True):
        torch.testing.assert_close(value, of_rewards, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_the_advantage_of_a_completion_that_does_not_exist_is_not_read(batch, impl):
    advantages = torch.randn(4, 5, device=DEVICE)
    advantages[3, 4] = math.nan
    own = {name: tensor for name, tensor in batch.items() if name not in ("rewards", "scores")}
    found = tawin_grpo_loss(**own, advantages=advantages, impl=impl)
    assert bool(found.loss.isfinite())
    assert float(found.advantages[3, 4]) == 0


def test_without_rewards_and_advantages_the_rewards_are_missed(batch):
    own = {name: tensor for name, tensor in batch.items() if name not in ("rewards", "scores")}
    with pytest.raises(TypeError, match=r"rewards: expected a tensor \[B, G\], got NoneType"):
        tawin_grpo_loss(**own)


def test_advantages_that_do_not_fit_or_are_not_finite_are_refused(batch):
    with pytest.raises(ValueError, match=r"advantages: expected shape \[B, G\] = \[4, 5\], got \[4, 4\]"):
        tawin_grpo_loss(**batch, advantages=torch.zeros(4, 4, device=DEVICE))
    advantages = torch.zeros(4, 5, device=DEVICE)
    advantages[0, 1] = math.inf
    with pytest.raises(ValueError, match=r"advantages: expected finite advantages, got inf at index \[0, 1\]"):
        tawin_grpo_loss(**batch, advantages=advantages, check_values=True)
