"""grpo_loss in Triton against the reference op in fp64: values, gradients, what it does not read, same bits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tawin_kernels import GRPOLoss, grpo_loss, reference
from tawin_kernels.ops.loss import kernels as grpo_loss_kernel

from ...devices import DEVICE

NAN = math.nan
INF = math.inf
LOSS_TYPES = ("grpo", "dapo", "dr_grpo", "gspo", "bnpo", "cispo")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# fp32 exponentials of log-ratios around 1 and fp32 sums of up to a thousand of them, relative to sizes around 1.
TOLERANCE = {"atol": 3e-6, "rtol": 3e-6}


def batch(shape: tuple[int, int, int], seed: int, *, filled: float = 0.7, dtype: torch.dtype = torch.float32) -> dict:
    """Tensors of a call. What is not to be read is NaN."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    log_probs = normal(*shape) - 2
    mask = torch.rand(shape, generator=generator) < filled
    valid = torch.rand(shape[:2], generator=generator) < 0.8
    advantages = normal(*shape[:2]) * (torch.rand(shape[:2], generator=generator) < 0.7)
    read = mask & valid[..., None]
    tensors = {
        "log_probs": log_probs,
        "old_log_probs": log_probs + 0.3 * normal(*shape),
        "ref_log_probs": log_probs + 0.5 * normal(*shape),
    }
    tensors = {name: tensor.masked_fill(~read, NAN).to(dtype) for name, tensor in tensors.items()}
    tensors.update(mask=mask, valid=valid, advantages=advantages.masked_fill(~valid, NAN))
    return {name: tensor.to(DEVICE) for name, tensor in tensors.items()}


def compare(tensors: dict, options: dict, tolerance: dict = TOLERANCE) -> GRPOLoss:
    """The kernels' result, after it and its gradient were found to be the reference's."""
    log_probs = tensors["log_probs"].detach().requires_grad_()
    result = grpo_loss(**{**tensors, "log_probs": log_probs}, **options, impl="triton")
    exact = {
        name: tensor.double() if tensor is not None and tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    exact_log_probs = exact["log_probs"].detach().requires_grad_()
    expected = reference.grpo_loss(**{**exact, "log_probs": exact_log_probs}, **options)
    for value, wanted in zip(result, expected, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), wanted, **tolerance)
    assert [value.requires_grad for value in result] == [True, False, False, False, False]
    gradient = torch.autograd.grad(1.7 * result.loss, log_probs)[0]
    wanted = torch.autograd.grad(1.7 * expected.loss, exact_log_probs)[0]
    assert gradient.dtype == log_probs.dtype
    rounding = torch.finfo(log_probs.dtype).eps  # of the gradient itself
    torch.testing.assert_close(
        gradient.double(), wanted, atol=tolerance["atol"], rtol=tolerance["rtol"] + rounding, equal_nan=False
    )
    return result


@given(
    st.sampled_from([(1, 1, 1), (2, 3, 4), (3, 5, 2), (1, 4, 7), (1, 2, 300), (0, 3, 4), (2, 3, 0), (12, 16, 3)]),
    st.integers(0, 10**6),
    st.sampled_from(LOSS_TYPES),
    st.sampled_from(["token", "sequence"]),
    st.sampled_from([(0.2, 0.2), (0.1, 0.3), (0.0, 0.0)]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([None, 3, 2.5, torch.tensor(7), torch.tensor(3.5), torch.tensor(3.5, dtype=torch.float64)]),
    st.sets(st.sampled_from(["old_log_probs", "ref_log_probs", "valid"])),
    st.sampled_from([0.0, 0.7, 1.0]),
)
@settings(max_examples=150)
def test_losses_and_gradients_are_those_of_the_reference(
    shape, seed, loss_type, level, epsilons, beta, denominator, absent, filled
):
    tensors = batch(shape, seed, filled=filled)
    if "valid" in absent:
        tensors["mask"] &= tensors["valid"][..., None]
        tensors["advantages"] = tensors["advantages"].masked_fill(~tensors["mask"].any(-1), NAN)
    tensors.update({name: None for name in absent})
    compare(
        tensors,
        {
            "loss_type": loss_type,
            "importance_level": level,
            "epsilon_low": epsilons[0],
            "epsilon_high": epsilons[1] + (loss_type == "cispo"),
            "beta": 0.0 if "ref_log_probs" in absent else beta,
            "denominator": denominator.to(DEVICE) if isinstance(denominator, torch.Tensor) else denominator,
        },
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_lower_precision_input_is_that_of_the_reference_on_the_same_values(dtype):
    tensors = batch((3, 4, 5), 0, dtype=dtype)
    tensors["ref_log_probs"] = tensors["ref_log_probs"].double()
    compare({**tensors, "advantages": tensors["advantages"].to(dtype)}, {"beta": 0.1})


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("distance", [79.0, 87.0, 90.0, 1e4, INF])
def test_a_log_ratio_whose_exp_overflows_is_that_of_the_reference(loss_type, distance):
    log_probs = torch.full((3, 2, 2), -1.0, device=DEVICE)
    old, ref = log_probs.clone(), log_probs.clone()
    old[:2, 0] = -1.0 - distance
    ref[2, 0] = -1.0 + distance
    tensors = {
        "log_probs": log_probs,
        "mask": torch.ones(3, 2, 2, dtype=torch.bool, device=DEVICE),
        "advantages": torch.tensor([[0.0, 0.0], [1.0, -1.0], [1.0, -1.0]], device=DEVICE),
        "old_log_probs": old,
        "ref_log_probs": ref,
    }
    # fp32's exp of 80 is good to 80 units of 2**-24.
    options = {"loss_type": loss_type, "beta": 0.1, "epsilon_high": 1.2}
    result = compare(tensors, options, {"atol": 3e-6, "rtol": 1e-5})
    assert all(bool(value.isfinite().all()) for value in result)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("distance", [79.0, 81.0, 1e4])
def test_an_overflowing_log_ratio_of_a_negative_is_that_of_the_reference(loss_type, distance):
    log_probs = torch.full((1, 2, 2), -1.0, device=DEVICE)
    tensors = {
        "log_probs": log_probs,
        "mask": torch.ones(1, 2, 2, dtype=torch.bool, device=DEVICE),
        "advantages": torch.tensor([[1.0, -1.0]], device=DEVICE),
        "old_log_probs": log_probs - torch.tensor([[0.0], [distance]], device=DEVICE),
    }
    # fp32's exp of 80 is good to 80 units of 2**-24.
    compare(tensors, {"loss_type": loss_type, "epsilon_high": 1.2}, {"atol": 3e-6, "rtol": 1e-5})


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_log_prob_that_is_not_a_number_makes_the_loss_one_too(loss_type):
    tensors = batch((2, 3, 4), 0)
    place = tuple((tensors["mask"] & tensors["valid"][..., None]).nonzero()[0])
    tensors["advantages"][place[:2]] = 1.0
    for name in ("log_probs", "old_log_probs"):
        changed = {**tensors, name: tensors[name].index_put(place, torch.tensor(NAN, device=DEVICE))}
        assert grpo_loss(**changed, loss_type=loss_type, epsilon_high=1.2, impl="triton").loss.isnan()


def test_more_programs_than_are_added_up_at_once_are_all_added(monkeypatch):
    monkeypatch.setattr(grpo_loss_kernel, "_PARTIALS_AT_ONCE", 4)
    compare(batch((2, 18, 128), 0), {"beta": 0.1})  # nine programs of four completions


def test_strided_input_gives_the_same_bits_as_contiguous_input_and_a_second_run_too():
    tensors = batch((4, 3, 5), 0)
    strided = {
        name: tensor.transpose(0, 1).contiguous().transpose(0, 1)
        for name, tensor in tensors.items()
        if tensor.dim() > 1
    }
    assert not strided["log_probs"].is_contiguous() and not strided["valid"].is_contiguous()
    results = []
    for each in (tensors, strided):
        log_probs = each["log_probs"].detach().requires_grad_()
        result = grpo_loss(**{**each, "log_probs": log_probs}, beta=0.1, impl="triton")
        results.append((*result, torch.autograd.grad(result.loss, log_probs)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_backward_twice_gives_the_same_gradient():
    tensors = batch((2, 3, 4), 0)
    log_probs = tensors["log_probs"].requires_grad_()
    loss = grpo_loss(**tensors, impl="triton").loss
    gradients = [torch.autograd.grad(loss, log_probs, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*gradients)


def test_a_second_derivative_is_refused_and_not_silently_zero():
    tensors = batch((2, 3, 4), 0)
    log_probs = tensors["log_probs"].requires_grad_()
    loss = grpo_loss(**tensors, impl="triton").loss
    expected = torch.autograd.grad(loss, log_probs, retain_graph=True)[0]
    gradient = torch.autograd.grad(loss, log_probs, create_graph=True)[0]
    assert torch.equal(gradient, expected)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        (loss + gradient.square().sum()).backward()


def test_without_a_gradient_wanted_the_values_are_the_same():
    tensors = batch((2, 3, 4), 0)
    with torch.no_grad():
        plain = grpo_loss(**tensors, beta=0.1, impl="triton")
    assert not plain.loss.requires_grad
    compared = compare(tensors, {"beta": 0.1})
    assert all(torch.equal(a, b) for a, b in zip(plain, compared, strict=True))


def test_bad_input_is_refused_before_anything_is_launched():
    tensors = batch((2, 3, 4), 0)
    with pytest.raises(ValueError, match="denominator: expected a finite number > 0"):
        grpo_loss(**tensors, denominator=0, impl="triton")
    with pytest.raises(TypeError, match="grpo_loss in Triton takes float32"):
        grpo_loss(**{**tensors, "log_probs": tensors["log_probs"].double()}, impl="triton")
