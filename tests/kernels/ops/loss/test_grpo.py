"""grpo_loss: against plain loops, gradients, masks, denominators, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tawin_kernels import GRPOLoss, grpo_loss

from ... import brute_force
from .loss_refusals import LOSS_REFUSALS, empty_meta

NAN = math.nan
INF = math.inf
CLIPPED = ("grpo", "dapo", "dr_grpo", "gspo", "bnpo")
LOSS_TYPES = (*CLIPPED, "cispo")


def of_type(loss_type: str) -> dict:
    """cispo's epsilon_high is the largest ratio itself."""
    return {"loss_type": loss_type, **({"epsilon_high": 5.0} if loss_type == "cispo" else {})}


@st.composite
def batches(draw):
    """Log-probs, mask, advantages, and maybe old and ref log-probs and valid: fp64 tensors [B, G, L] and [B, G]."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(0, 4)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    log_probs = normal(*shape) - 2
    mask = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    return {
        "log_probs": log_probs,
        "mask": mask,
        "advantages": normal(*shape[:2]) * (torch.rand(shape[:2], generator=generator) < 0.7),
        "old_log_probs": draw(st.sampled_from([None, log_probs + 0.3 * normal(*shape)])),
        "ref_log_probs": log_probs + 0.5 * normal(*shape),
        "valid": draw(st.sampled_from([None, torch.rand(shape[:2], generator=generator) < 0.7])),
    }


def numbers(result: GRPOLoss) -> dict[str, float]:
    return {name: getattr(result, name).item() for name in ("loss", "kl", "clip_fraction")}


def as_list(tensor: torch.Tensor | None) -> list | None:
    return None if tensor is None else tensor.tolist()


@given(
    batches(),
    st.sampled_from(LOSS_TYPES),
    st.sampled_from([(0.2, 0.2), (0.1, 0.3), (0.0, 0.0)]),
    st.sampled_from([0.0, 0.04, 1.0]),
    st.sampled_from([None, 3, 2.5]),
    st.sampled_from(["token", "sequence"]),
)
def test_losses_are_those_of_plain_loops(batch, loss_type, epsilons, beta, denominator, level):
    low, high = epsilons
    high = high + 1 if loss_type == "cispo" else high
    options = {"loss_type": loss_type, "epsilon_low": low, "epsilon_high": high, "beta": beta}
    options["importance_level"] = level
    result = grpo_loss(**batch, **options, denominator=denominator)
    valid = batch["mask"].any(-1) if batch["valid"] is None else batch["valid"]
    expected = brute_force.group_loss(
        batch["log_probs"].tolist(),
        batch["mask"].tolist(),
        batch["advantages"].tolist(),
        valid.tolist(),
        as_list(batch["old_log_probs"]),
        as_list(batch["ref_log_probs"]),
        **options,
        denominator=denominator,
    )
    assert numbers(result) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert all(value.dtype == torch.float64 for value in result)
    read = batch["mask"] & valid[..., None]
    assert torch.equal(result.log_probs, torch.where(read, batch["log_probs"], 0.0))
    assert torch.equal(result.advantages, torch.where(valid, batch["advantages"], 0.0))


@pytest.mark.parametrize("loss_type", CLIPPED)
@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_gradients_are_right(loss_type, beta, level):
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    old = log_probs + 0.5 * torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)  # clipped and unclipped
    ref = log_probs + 0.5 * torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 3, 4, generator=generator) < 0.8
    advantages = torch.randn(2, 3, generator=generator, dtype=torch.float64)

    def loss(log_probs):
        return grpo_loss(
            log_probs,
            mask,
            advantages,
            old_log_probs=old,
            ref_log_probs=ref,
            beta=beta,
            loss_type=loss_type,
            importance_level=level,
        ).loss

    assert torch.autograd.gradcheck(loss, [log_probs.requires_grad_()])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_on_policy_the_gradient_is_that_of_the_policy_gradient(loss_type):
    # At rho = 1 every loss type has the gradient of -sum A log p over its own denominator.
    log_probs = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(4) < torch.tensor([[4, 1, 2], [3, 0, 4]])[..., None]
    advantages = torch.randn(2, 3, dtype=torch.float64)
    grpo_loss(log_probs, mask, advantages, **of_type(loss_type)).loss.backward()
    lengths = mask.sum(-1, keepdim=True)
    divisor = {"grpo": 5 * lengths, "gspo": 5 * lengths, "dr_grpo": 5 * 4}.get(loss_type, 14)
    expected = torch.where(mask, -advantages[..., None] / divisor, 0.0)
    torch.testing.assert_close(log_probs.grad, expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_nothing_masked_or_invalid_is_read_not_even_for_the_gradient(loss_type):
    mask = torch.tensor([[[True, False], [True, True], [True, True]]])
    valid = torch.tensor([[True, True, False]])
    read = mask & valid[..., None]
    clean = {name: torch.randn(1, 3, 2) for name in ("log_probs", "old_log_probs", "ref_log_probs")}
    advantages = torch.tensor([[1.0, -1.0, 5.0]])
    poisoned = {name: torch.where(read, tensor, NAN) for name, tensor in clean.items()}
    results, gradients = [], []
    for tensors, some_advantages in ((clean, advantages), (poisoned, torch.where(valid, advantages, NAN))):
        log_probs = tensors["log_probs"].requires_grad_()
        result = grpo_loss(
            **tensors, mask=mask, advantages=some_advantages, valid=valid, beta=0.1, **of_type(loss_type)
        )
        result.loss.backward()
        results.append(result)
        gradients.append(log_probs.grad)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert torch.equal(*gradients)
    assert bool((gradients[0][~read] == 0).all())


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("shape", [(2, 3, 4), (0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_nothing_masked_in_gives_zero_with_a_gradient_path(loss_type, shape):
    log_probs = torch.full(shape, NAN, requires_grad=True)
    result = grpo_loss(
        log_probs,
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(shape[:2]),
        ref_log_probs=torch.zeros(shape),
        beta=0.1,
        **of_type(loss_type),
    )
    assert numbers(result) == {"loss": 0.0, "kl": 0.0, "clip_fraction": 0.0}
    result.loss.backward()
    assert bool((log_probs.grad == 0).all())


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_micro_batches_over_the_full_denominator_sum_to_the_full_loss(loss_type):
    generator = torch.Generator().manual_seed(0)
    shape = (4, 3, 5)
    log_probs, old, ref = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(shape, generator=generator) < 0.6
    valid = torch.rand(shape[:2], generator=generator) < 0.8
    advantages = torch.randn(shape[:2], generator=generator, dtype=torch.float64)

    def loss(rows: slice, **options) -> float:
        return grpo_loss(
            log_probs[rows],
            mask[rows],
            advantages[rows],
            old_log_probs=old[rows],
            ref_log_probs=ref[rows],
            valid=valid[rows],
            beta=0.1,
            **of_type(loss_type),
            **options,
        ).loss.item()

    sequences, tokens = int(valid.sum()), int((mask & valid[..., None]).sum())
    denominator = {"grpo": sequences, "gspo": sequences, "dr_grpo": sequences * 5}.get(loss_type, tokens)
    for whole in (denominator, float(denominator), torch.tensor(denominator), torch.tensor(float(denominator))):
        parts = [loss(rows, denominator=whole) for rows in (slice(0, 1), slice(1, 3), slice(3, 4))]
        assert sum(parts) == pytest.approx(loss(slice(None)), rel=1e-12)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_leaving_dead_groups_out_is_exact_over_the_full_denominator(loss_type):
    log_probs = torch.randn(3, 2, 4, dtype=torch.float64)
    mask = torch.rand(3, 2, 4) < 0.8
    mask[:, :, 0] = True
    advantages = torch.tensor([[1.0, -1.0], [0.0, 0.0], [0.5, -0.5]], dtype=torch.float64)
    denominator = {"grpo": 6, "gspo": 6, "dr_grpo": 24}.get(loss_type, int(mask.sum()))
    live = [0, 2]
    full = grpo_loss(log_probs, mask, advantages, **of_type(loss_type))
    kept = grpo_loss(log_probs[live], mask[live], advantages[live], **of_type(loss_type), denominator=denominator)
    assert kept.loss.item() == pytest.approx(full.loss.item(), rel=1e-12)


def test_a_token_is_clipped_only_where_the_clip_is_active():
    # Ratios e^-1 and e^1 with advantages of both signs and 0: TRL's is_low_clipped and is_high_clipped.
    old = torch.zeros(1, 3, 2)
    log_probs = torch.tensor([[[-1.0, 1.0]] * 3])
    result = grpo_loss(
        log_probs, torch.ones(1, 3, 2, dtype=torch.bool), torch.tensor([[1.0, -1.0, 0.0]]), old_log_probs=old
    )
    assert result.clip_fraction.item() == pytest.approx(2 / 6)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_cispo_weighs_the_policy_gradient_by_a_capped_constant_ratio(level):
    # Ratios e^-1 and e^1, by completion e^0, and never a token without a gradient: TRL's cispo.
    old = torch.zeros(1, 2, 2)
    log_probs = torch.tensor([[[-1.0, 1.0]] * 2], requires_grad=True)
    advantages = torch.tensor([[1.0, -2.0]])
    result = grpo_loss(
        log_probs,
        torch.ones(1, 2, 2, dtype=torch.bool),
        advantages,
        old_log_probs=old,
        loss_type="cispo",
        epsilon_high=1.5,
        importance_level=level,
    )
    weights = torch.tensor([math.exp(-1), 1.5]) if level == "token" else torch.ones(2)
    expected = -advantages[..., None] * weights / 4
    torch.testing.assert_close(result.loss, (expected * log_probs.detach()).sum())
    torch.testing.assert_close(torch.autograd.grad(result.loss, log_probs)[0], expected)
    assert result.clip_fraction.item() == (0.25 if level == "token" else 0.0)


def test_gspo_is_grpo_at_sequence_level():
    generator = torch.Generator().manual_seed(0)
    log_probs, old = (torch.randn(2, 3, 4, generator=generator) for _ in range(2))
    mask = torch.rand(2, 3, 4, generator=generator) < 0.7
    advantages = torch.randn(2, 3, generator=generator)
    gspo = grpo_loss(log_probs, mask, advantages, old_log_probs=old, loss_type="gspo")
    grpo = grpo_loss(log_probs, mask, advantages, old_log_probs=old, importance_level="sequence")
    assert all(torch.equal(a, b) for a, b in zip(gspo, grpo, strict=True))


def test_a_valid_completion_without_tokens_still_counts_as_a_sequence():
    log_probs = torch.zeros(1, 2, 2)
    mask = torch.tensor([[[True, True], [False, False]]])
    advantages = torch.tensor([[1.0, -1.0]])
    assert grpo_loss(log_probs, mask, advantages).loss.item() == -1.0
    assert grpo_loss(log_probs, mask, advantages, valid=torch.tensor([[True, True]])).loss.item() == -0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_results_are_fp32_for_lower_precision_and_only_the_loss_has_a_gradient(dtype):
    log_probs = torch.randn(2, 3, 4).to(dtype).requires_grad_()
    result = grpo_loss(
        log_probs, torch.ones(2, 3, 4, dtype=torch.bool), torch.randn(2, 3).to(dtype), ref_log_probs=log_probs.detach()
    )
    assert all(value.dtype == torch.float32 for value in result)
    assert [value.requires_grad for value in result] == [True, False, False, False, False]
    result.loss.backward()
    assert log_probs.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_a_denominator_of_another_dtype_is_a_constant_and_leaves_the_loss_in_fp32(dtype):
    log_probs = torch.randn(1, 2, 3, requires_grad=True)
    mask, advantages = torch.ones(1, 2, 3, dtype=torch.bool), torch.tensor([[1.0, -0.5]])
    denominator = torch.tensor(3, dtype=dtype, requires_grad=dtype.is_floating_point)
    loss = grpo_loss(log_probs, mask, advantages, denominator=denominator).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, grpo_loss(log_probs, mask, advantages, denominator=3).loss)
    loss.backward()
    assert denominator.grad is None


def test_advantages_are_constants_for_the_gradient():
    log_probs = torch.randn(1, 2, 3, requires_grad=True)
    advantages = torch.randn(1, 2, requires_grad=True)
    result = grpo_loss(log_probs, torch.ones(1, 2, 3, dtype=torch.bool), advantages)
    assert torch.autograd.grad(result.loss, advantages, allow_unused=True) == (None,)
    assert not result.advantages.requires_grad


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("name", ["old_log_probs", "ref_log_probs"])
def test_old_and_reference_log_probs_are_constants_for_the_gradient(loss_type, name):
    log_probs = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    advantages = torch.randn(2, 3, dtype=torch.float64)
    others = {"old_log_probs": log_probs.detach() + 0.1, "ref_log_probs": log_probs.detach() - 0.5}

    def gradient(**changes):
        loss = grpo_loss(log_probs, mask, advantages, **{**others, **changes}, beta=0.3, **of_type(loss_type)).loss
        return torch.autograd.grad(loss, log_probs)[0]

    no_change = log_probs - log_probs.detach()  # zeros with a graph
    assert torch.equal(gradient(**{name: others[name] + no_change}), gradient())


@pytest.mark.parametrize("loss_type", CLIPPED)
@pytest.mark.parametrize("distance", [87.0, 90.0, 1e4, INF])
def test_a_log_ratio_whose_exp_overflows_leaves_no_nan(loss_type, distance):
    # Groups: dead (A = 0), clipped from above (A > 0), and an ordinary one beside them.
    log_probs = torch.full((3, 2, 2), -1.0, requires_grad=True)
    old = torch.full((3, 2, 2), -1.0)
    old[:2, 0] = -1.0 - distance
    advantages = torch.tensor([[0.0, 0.0], [1.0, -1.0], [1.0, -1.0]])
    result = grpo_loss(
        log_probs, torch.ones(3, 2, 2, dtype=torch.bool), advantages, old_log_probs=old, loss_type=loss_type
    )
    result.loss.backward()
    # Six completions of two tokens: every loss type divides by 12.
    assert result.loss.item() == pytest.approx(-0.2 * 2 / 12, abs=1e-6)  # rho A clipped at 1.2, the rest cancels
    expected = -advantages[..., None].repeat(1, 1, 2) / 12
    expected[1, 0] = 0.0
    torch.testing.assert_close(log_probs.grad, expected, atol=1e-7, rtol=0)
    assert result.clip_fraction.item() == pytest.approx(2 / 12)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("distance", [90.0, 1e4, INF])
def test_an_overflowing_log_ratio_of_a_negative_or_of_the_kl_stays_finite(loss_type, distance):
    log_probs = torch.full((1, 2, 2), -1.0, requires_grad=True)
    old, ref = torch.full((1, 2, 2), -1.0), torch.full((1, 2, 2), -1.0)
    old[0, 1] = -1.0 - distance
    ref[0, 0] = -1.0 + distance
    advantages = torch.tensor([[1.0, -1.0]])
    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    result = grpo_loss(
        log_probs, mask, advantages, old_log_probs=old, ref_log_probs=ref, beta=0.1, **of_type(loss_type)
    )
    result.loss.backward()
    assert all(bool(value.isfinite().all()) for value in (*result, log_probs.grad))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        *LOSS_REFUSALS,
        ({"log_probs": torch.zeros(2, 3)}, ValueError, r"log_probs: expected shape \[B, G, L\], got \[2, 3\]"),
        ({"log_probs": torch.zeros(2, 3, 4).long()}, TypeError, "log_probs: expected dtype"),
        ({"log_probs": None}, TypeError, "log_probs: expected a tensor"),
        ({"advantages": torch.zeros(2, 3, 4)}, ValueError, r"advantages: expected shape \[B, G\] = \[2, 3\]"),
        ({"advantages": torch.zeros(2, 3).long()}, TypeError, "advantages: expected dtype"),
        ({"advantages": empty_meta(2, 3)}, ValueError, "advantages: expected device cpu as log_probs, got meta"),
    ],
)
def test_bad_input_of_grpo_loss_is_refused_by_name(changes, error, message):
    good = {
        "log_probs": torch.zeros(2, 3, 4),
        "mask": torch.ones(2, 3, 4, dtype=torch.bool),
        "advantages": torch.zeros(2, 3),
    }
    with pytest.raises(error, match=message):
        grpo_loss(**{**good, **changes})
