"""tawin_grpo_loss in Triton against the reference op in fp64: values, gradients, and what never reaches the LM head."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
from tawin_kernels import ItemTrie, TAWin, reference, tawin_grpo_loss
from tawin_kernels.ops.advantage import kernels as advantage_kernel

from ...devices import DEVICE, KERNEL_DTYPES

NAN = math.nan
LOSS_TYPES = ("grpo", "dapo", "dr_grpo", "gspo", "bnpo", "cispo")
V, H = 37, 16
LEAVES = ("hidden", "lm_head_weight", "bias")

# Values: fp32 sums of 16 products of size one, and an exp of their difference. Gradients, relative to their norm:
# fp32 sums for fp32, else one rounding of a slab's element and of the result (2**-11 for fp16, 2**-8 for bf16).
VALUE_TOLERANCE = 3e-5
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def completions(seed: int = 0, dtype: torch.dtype = torch.float32, *, shared: bool = False, trie: bool = False) -> dict:
    """Four groups of five: live, dead, all positive, and live with a completion that does not exist."""
    generator = torch.Generator().manual_seed(seed)
    shape = (4, 5, 3)
    mask = torch.rand(shape, generator=generator) < 0.7
    mask[..., 0] = True
    mask[3, 4] = False
    token_ids = torch.randint(0, V, shape, generator=generator).masked_fill(~mask, -100)
    hidden_shape = (7, H) if shared else (*shape, H)
    batch = {
        "hidden": torch.randn(hidden_shape, generator=generator).to(dtype),
        "lm_head_weight": (0.5 * torch.randn(V, H, generator=generator)).to(dtype),
        "bias": torch.randn(V, generator=generator).to(dtype),
        "token_ids": token_ids,
        "mask": mask,
        "rewards": torch.tensor([[0.0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]]),
        "scores": torch.randn(4, 5, generator=generator).masked_fill(~mask.any(-1), -math.inf),
        "old_log_probs": -3.5 + 0.5 * torch.randn(shape, generator=generator),
        "ref_log_probs": -3.5 + 0.5 * torch.randn(shape, generator=generator),
    }
    if shared:
        batch["rows"] = torch.randint(0, 7, shape, generator=generator)
    if trie:
        tokens = torch.randint(0, V, (30, 2), generator=generator)
        batch["trie"] = ItemTrie.from_sequences(tokens).to(DEVICE)
        chosen = torch.randint(0, 30, shape, generator=generator)
        batch["token_ids"] = tokens[chosen, 0].masked_fill(~mask, -100)
        batch["nodes"] = torch.zeros(shape, dtype=torch.int64)
    return {name: value.to(DEVICE) for name, value in batch.items()}


def run(op, tensors: dict, options: dict):
    """The result, and the gradients of the leaves."""
    leaves = [tensors[name].detach().requires_grad_() for name in LEAVES]
    result = op(**{**tensors, **dict(zip(LEAVES, leaves, strict=True))}, **options)
    return result, torch.autograd.grad(result.loss, leaves)


def compare(tensors: dict, options: dict, impl: str = "triton") -> None:
    result, gradients = run(lambda **arguments: tawin_grpo_loss(**arguments, impl=impl), tensors, options)
    exact = {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in tensors.items()
    }
    expected, exact_gradients = run(reference.tawin_grpo_loss, exact, options)
    for value, wanted in zip(result, expected, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), wanted, atol=VALUE_TOLERANCE, rtol=VALUE_TOLERANCE)
    for gradient, wanted in zip(gradients, exact_gradients, strict=True):
        error = (gradient.double() - wanted).norm()
        assert error <= GRADIENT_TOLERANCE[gradient.dtype] * wanted.norm() + 1e-9


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_losses_and_gradients_are_those_of_the_reference(loss_type, beta):
    tensors = completions()
    if beta == 0:
        tensors["ref_log_probs"] = None
    options = {"loss_type": loss_type, "beta": beta, "epsilon_high": 1.1 if loss_type == "cispo" else 0.3}
    compare(tensors, {**options, "tawin": TAWin(anchor=1, window=1.5), "temperature": 0.9})


@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
@pytest.mark.parametrize("changes", [{"tawin": None}, {"importance_level": "sequence"}, {"denominator": 3.0}])
def test_other_options_and_dtypes_are_those_of_the_reference(dtype, changes):
    compare({**completions(dtype=dtype), "ref_log_probs": None}, changes)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@pytest.mark.parametrize("all_log_probs", [False, True])
def test_shared_states_and_the_trie_are_those_of_the_reference(shared, normalizer, all_log_probs):
    tensors = completions(shared=shared, trie=normalizer == "trie")
    tensors["ref_log_probs"] = None
    compare(tensors, {"normalizer": normalizer, "all_log_probs": all_log_probs})


def test_without_a_kl_in_the_loss_reference_log_probs_still_give_the_kl_of_all_completions():
    compare(completions(), {"beta": 0.0})


def test_fp64_rewards_and_scores_beside_fp32_states_are_those_of_the_reference():
    tensors = completions()
    tensors.update({name: tensors[name].double() for name in ("rewards", "scores", "old_log_probs")})
    compare(tensors, {"beta": 0.1})


def test_without_kl_a_completion_of_advantage_zero_never_reaches_the_head():
    tensors = {**completions(), "ref_log_probs": None}
    skip = {"all_log_probs": False}
    whole, gradients = run(lambda **arguments: tawin_grpo_loss(**arguments, impl="triton"), tensors, skip)
    has_advantage = (whole.advantages != 0)[..., None]
    assert (whole.log_probs != 0).flatten(1).any(-1).tolist() == [True, False, False, True]
    poisoned = {**tensors, "hidden": tensors["hidden"].masked_fill(~has_advantage[..., None], NAN)}
    part, part_gradients = run(lambda **arguments: tawin_grpo_loss(**arguments, impl="triton"), poisoned, skip)
    for a, b in (*zip(whole, part, strict=True), *zip(gradients, part_gradients, strict=True)):
        assert torch.equal(a, b)
    assert bool((part.log_probs.masked_select(~has_advantage) == 0).all())


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_nothing_masked_or_invalid_is_read(beta):
    tensors = completions()
    valid = torch.ones(4, 5, dtype=torch.bool, device=DEVICE)
    valid[3, 4] = valid[0, 2] = False
    read = tensors["mask"] & valid[..., None]
    poisoned = dict(tensors)
    for name in ("hidden", "old_log_probs", "ref_log_probs"):
        unread = ~read[..., None] if name == "hidden" else ~read
        poisoned[name] = tensors[name].masked_fill(unread, NAN)
    poisoned["token_ids"] = tensors["token_ids"].masked_fill(~read, 12345)
    poisoned["rewards"] = tensors["rewards"].masked_fill(~valid, NAN)
    poisoned["scores"] = tensors["scores"].masked_fill(~valid, NAN)
    tensors["token_ids"] = tensors["token_ids"].clamp(min=0)
    runs = [
        run(lambda **arguments: tawin_grpo_loss(**arguments, impl="triton"), each, {"valid": valid, "beta": beta})
        for each in (tensors, poisoned)
    ]
    for a, b in (*zip(runs[0][0], runs[1][0], strict=True), *zip(runs[0][1], runs[1][1], strict=True)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("all_log_probs", [False, True])
def test_a_batch_of_dead_groups_gives_zero_with_a_gradient_path(all_log_probs):
    tensors = {**completions(), "ref_log_probs": None}
    tensors["rewards"].zero_()
    options = {"all_log_probs": all_log_probs}
    result, gradients = run(lambda **arguments: tawin_grpo_loss(**arguments, impl="triton"), tensors, options)
    assert result.loss.item() == 0.0
    assert all(bool((gradient == 0).all()) for gradient in gradients)


@pytest.mark.parametrize("shape", [(0, 4, 3), (3, 4, 0)])
def test_an_empty_batch_gives_zero(shape):
    hidden = torch.zeros(*shape, H, device=DEVICE, requires_grad=True)
    result = tawin_grpo_loss(
        hidden,
        torch.zeros(V, H, device=DEVICE),
        torch.zeros(shape, dtype=torch.int64, device=DEVICE),
        torch.ones(shape, dtype=torch.bool, device=DEVICE),
        torch.zeros(shape[:2], device=DEVICE),
        torch.zeros(shape[:2], device=DEVICE),
        impl="triton",
    )
    assert result.loss.item() == 0.0
    result.loss.backward()


def test_groups_beyond_the_advantage_kernel_are_refused_by_name():
    shape = (1, 513, 1)
    with pytest.raises(
        ValueError, match="rewards: expected at most 512 completions a group with impl='triton', got 513"
    ):
        tawin_grpo_loss(
            torch.zeros(*shape, H, device=DEVICE),
            torch.zeros(V, H, device=DEVICE),
            torch.zeros(shape, dtype=torch.int64, device=DEVICE),
            torch.ones(shape, dtype=torch.bool, device=DEVICE),
            torch.zeros(shape[:2], device=DEVICE),
            torch.zeros(shape[:2], device=DEVICE),
            impl="triton",
        )


@pytest.mark.parametrize("all_log_probs", [False, True])
def test_groups_beyond_the_advantage_kernel_run_where_they_may(monkeypatch, all_log_probs):
    monkeypatch.setattr(advantage_kernel, "MAX_GROUP", 4)  # of the five
    monkeypatch.setattr(import_module("tawin_kernels.ops.loss.tawin_grpo"), "MAX_GROUP", 4)  # a function has that name
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # "auto" means Triton on the CPU too
    tensors = {**completions(), "ref_log_probs": None}
    compare(tensors, {"all_log_probs": all_log_probs}, impl="auto")


def test_bad_input_is_refused_before_anything_is_launched():
    tensors = completions()
    with pytest.raises(ValueError, match="ref_log_probs: expected a tensor"):
        tawin_grpo_loss(**{**tensors, "ref_log_probs": None}, beta=0.1, impl="triton")
    with pytest.raises(ValueError, match="nodes: expected None with normalizer 'vocab'"):
        tawin_grpo_loss(**tensors, nodes=tensors["token_ids"], impl="triton")
