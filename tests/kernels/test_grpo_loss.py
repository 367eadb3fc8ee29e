"""grpo_loss and tawin_grpo_loss: against plain loops, gradients, masks, denominators, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tawin_kernels import GRPOLoss, TAWin, group_advantages, grpo_loss, linear_log_probs, tawin_grpo_loss

from . import brute_force

NAN = math.nan
INF = math.inf
LOSS_TYPES = ("grpo", "dapo", "dr_grpo", "gspo")
V, H = 7, 3


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
)
def test_losses_are_those_of_plain_loops(batch, loss_type, epsilons, beta, denominator):
    low, high = epsilons
    options = {"loss_type": loss_type, "epsilon_low": low, "epsilon_high": high, "beta": beta}
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


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_gradients_are_right(loss_type, beta):
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    old = log_probs + 0.5 * torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)  # clipped and unclipped
    ref = log_probs + 0.5 * torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 3, 4, generator=generator) < 0.8
    advantages = torch.randn(2, 3, generator=generator, dtype=torch.float64)

    def loss(log_probs):
        return grpo_loss(
            log_probs, mask, advantages, old_log_probs=old, ref_log_probs=ref, beta=beta, loss_type=loss_type
        ).loss

    assert torch.autograd.gradcheck(loss, [log_probs.requires_grad_()])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_on_policy_the_gradient_is_that_of_the_policy_gradient(loss_type):
    # At rho = 1 every loss type has the gradient of -sum A log p over its own denominator.
    log_probs = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(4) < torch.tensor([[4, 1, 2], [3, 0, 4]])[..., None]
    advantages = torch.randn(2, 3, dtype=torch.float64)
    grpo_loss(log_probs, mask, advantages, loss_type=loss_type).loss.backward()
    lengths = mask.sum(-1, keepdim=True)
    divisor = {"grpo": 5 * lengths, "gspo": 5 * lengths, "dapo": 14, "dr_grpo": 5 * 4}[loss_type]
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
        result = grpo_loss(**tensors, mask=mask, advantages=some_advantages, valid=valid, beta=0.1, loss_type=loss_type)
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
        loss_type=loss_type,
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
            loss_type=loss_type,
            **options,
        ).loss.item()

    sequences, tokens = int(valid.sum()), int((mask & valid[..., None]).sum())
    denominator = {"grpo": sequences, "gspo": sequences, "dapo": tokens, "dr_grpo": sequences * 5}[loss_type]
    for whole in (denominator, float(denominator), torch.tensor(denominator), torch.tensor(float(denominator))):
        parts = [loss(rows, denominator=whole) for rows in (slice(0, 1), slice(1, 3), slice(3, 4))]
        assert sum(parts) == pytest.approx(loss(slice(None)), rel=1e-12)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_leaving_dead_groups_out_is_exact_over_the_full_denominator(loss_type):
    log_probs = torch.randn(3, 2, 4, dtype=torch.float64)
    mask = torch.rand(3, 2, 4) < 0.8
    mask[:, :, 0] = True
    advantages = torch.tensor([[1.0, -1.0], [0.0, 0.0], [0.5, -0.5]], dtype=torch.float64)
    denominator = {"grpo": 6, "gspo": 6, "dapo": int(mask.sum()), "dr_grpo": 24}[loss_type]
    live = [0, 2]
    full = grpo_loss(log_probs, mask, advantages, loss_type=loss_type)
    kept = grpo_loss(log_probs[live], mask[live], advantages[live], loss_type=loss_type, denominator=denominator)
    assert kept.loss.item() == pytest.approx(full.loss.item(), rel=1e-12)


def test_a_token_is_clipped_only_where_the_clip_is_active():
    # Ratios e^-1 and e^1 with advantages of both signs and 0: TRL's is_low_clipped and is_high_clipped.
    old = torch.zeros(1, 3, 2)
    log_probs = torch.tensor([[[-1.0, 1.0]] * 3])
    result = grpo_loss(
        log_probs, torch.ones(1, 3, 2, dtype=torch.bool), torch.tensor([[1.0, -1.0, 0.0]]), old_log_probs=old
    )
    assert result.clip_fraction.item() == pytest.approx(2 / 6)


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


def test_advantages_are_constants_for_the_gradient():
    log_probs = torch.randn(1, 2, 3, requires_grad=True)
    advantages = torch.randn(1, 2, requires_grad=True)
    result = grpo_loss(log_probs, torch.ones(1, 2, 3, dtype=torch.bool), advantages)
    assert torch.autograd.grad(result.loss, advantages, allow_unused=True) == (None,)
    assert not result.advantages.requires_grad


def completions(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict:
    """Three groups of four: one live, one dead, one live with an invalid completion."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, 4, 3, generator=generator) < 0.7
    mask[..., 0] = True
    mask[2, 3] = False
    return {
        "hidden": torch.randn(3, 4, 3, H, generator=generator, dtype=torch.float64).to(dtype),
        "lm_head_weight": torch.randn(V, H, generator=generator, dtype=torch.float64).to(dtype),
        "bias": torch.randn(V, generator=generator, dtype=torch.float64).to(dtype),
        "token_ids": torch.randint(0, V, (3, 4, 3), generator=generator).masked_fill(~mask, -100),
        "mask": mask,
        "rewards": torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]),
        "scores": torch.randn(3, 4, generator=generator).masked_fill(~mask.any(-1), -INF),
    }


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("tawin", [None, TAWin(anchor=1, window=1.5)])
def test_the_fused_loss_is_its_three_parts(loss_type, beta, tawin):
    batch = completions()
    noise = torch.randn(3, 4, 3, dtype=torch.float64)
    options = {
        "old_log_probs": 0.3 * noise - 2,
        "ref_log_probs": 0.3 * noise.flip(0) - 2,
        "loss_type": loss_type,
        "beta": beta,
        "epsilon_low": 0.1,
        "epsilon_high": 0.4,
    }
    leaves = [batch[name].requires_grad_() for name in ("hidden", "lm_head_weight", "bias")]
    fused = tawin_grpo_loss(**batch, **options, tawin=tawin, temperature=0.9)
    fused_gradients = torch.autograd.grad(fused.loss, leaves)

    log_probs = linear_log_probs(
        batch["hidden"], batch["lm_head_weight"], batch["token_ids"], temperature=0.9, bias=batch["bias"]
    )
    advantages = group_advantages(batch["rewards"].double(), batch["scores"], tawin=tawin, valid=batch["mask"].any(-1))
    parts = grpo_loss(log_probs, batch["mask"], advantages, **options)
    for value, expected in zip(fused, parts, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-12, rtol=0)
    for gradient, expected in zip(fused_gradients, torch.autograd.grad(parts.loss, leaves), strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_gradients_of_the_fused_loss_are_right(loss_type, beta):
    batch = completions()
    old = torch.randn(3, 4, 3, dtype=torch.float64) - 2

    def loss(hidden, lm_head_weight, bias):
        changed = {**batch, "hidden": hidden, "lm_head_weight": lm_head_weight, "bias": bias}
        return tawin_grpo_loss(
            **changed, old_log_probs=old, ref_log_probs=old.flip(0), loss_type=loss_type, beta=beta
        ).loss

    inputs = [batch[name].requires_grad_() for name in ("hidden", "lm_head_weight", "bias")]
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_log_probs_come_back_for_dead_groups_too_and_their_gradient_is_zero_without_kl(beta):
    batch = completions()
    hidden = batch["hidden"].requires_grad_()
    result = tawin_grpo_loss(**batch, beta=beta, ref_log_probs=torch.zeros(3, 4, 3))
    assert bool((result.log_probs[batch["mask"]] < 0).all())
    assert bool((result.log_probs[~batch["mask"]] == 0).all())
    result.loss.backward()
    assert bool((hidden.grad[1] == 0).all()) == (beta == 0)
    assert result.advantages[1].tolist() == [0.0] * 4


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_without_kl_only_completions_with_an_advantage_keep_their_logits_for_the_backward_pass(beta):
    batch = completions()
    batch["hidden"].requires_grad_()
    saved_rows = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 2 and tensor.shape[-1] == V and len(tensor) != H:  # [rows, V], not the weight turned round
            saved_rows.append(len(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = tawin_grpo_loss(**batch, beta=beta, ref_log_probs=torch.zeros(3, 4, 3))
    has_advantage = (result.advantages != 0)[..., None] | (beta > 0)
    assert set(saved_rows) == {int((batch["mask"] & has_advantage).sum())}


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_fused_loss_never_reads_what_is_masked_or_invalid(loss_type):
    batch = completions(dtype=torch.float32)
    mask = batch["mask"]
    mask[2, 3] = True  # tokens of a completion that is declared not to exist
    valid = torch.ones(3, 4, dtype=torch.bool)
    valid[2, 3] = False
    read = mask & valid[..., None]
    poisoned = {
        **batch,
        "hidden": batch["hidden"].masked_fill(~read[..., None], NAN),
        "token_ids": batch["token_ids"].masked_fill(~read, 12345),
        "rewards": batch["rewards"].masked_fill(~valid, NAN),
        "scores": batch["scores"].masked_fill(~valid, NAN),
    }
    leaves = ("hidden", "lm_head_weight", "bias")
    gradients = []
    results = []
    for tensors in ({**batch, "token_ids": batch["token_ids"].clamp(min=0)}, poisoned):
        inputs = [tensors[name].detach().requires_grad_() for name in leaves]
        result = tawin_grpo_loss(
            **{**tensors, **dict(zip(leaves, inputs, strict=True))}, valid=valid, loss_type=loss_type
        )
        gradients.append(torch.autograd.grad(result.loss, inputs))
        results.append(result)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_an_ignored_token_inside_the_mask_is_masked_out():
    batch = completions()
    everything = {**batch, "mask": torch.ones_like(batch["mask"])}
    assert all(torch.equal(a, b) for a, b in zip(tawin_grpo_loss(**everything), tawin_grpo_loss(**batch), strict=True))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_batch_of_dead_groups_gives_zero_with_a_gradient_path(loss_type):
    batch = completions()
    batch["rewards"].zero_()
    leaves = [batch[name].requires_grad_() for name in ("hidden", "lm_head_weight", "bias")]
    result = tawin_grpo_loss(**batch, loss_type=loss_type)
    assert result.loss.item() == 0.0
    assert all(bool((gradient == 0).all()) for gradient in torch.autograd.grad(result.loss, leaves))


@pytest.mark.parametrize("shape", [(0, 4, 3), (3, 4, 0)])
def test_an_empty_batch_gives_zero(shape):
    hidden = torch.zeros(*shape, H, requires_grad=True)
    result = tawin_grpo_loss(
        hidden,
        torch.randn(V, H),
        torch.zeros(shape, dtype=torch.int64),
        torch.ones(shape, dtype=torch.bool),
        torch.zeros(shape[:2]),
        torch.zeros(shape[:2]),
    )
    assert result.loss.item() == 0.0
    result.loss.backward()


def test_plain_grpo_needs_no_scores():
    batch = completions()
    without = tawin_grpo_loss(**{**batch, "scores": None}, tawin=None)
    assert torch.equal(without.loss, tawin_grpo_loss(**batch, tawin=None).loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_hidden_states_give_an_fp32_loss(dtype):
    batch = completions(dtype=dtype)
    result = tawin_grpo_loss(**batch)
    wide = {**batch, **{name: batch[name].float() for name in ("hidden", "lm_head_weight", "bias")}}
    assert all(torch.equal(a, b) for a, b in zip(result, tawin_grpo_loss(**wide), strict=True))
    assert result.loss.dtype == torch.float32


def empty_meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


# Refused by both losses: their tensors are [2, 3, 4] here.
LOSS_REFUSALS = [
    ({"mask": torch.ones(2, 3, 4)}, TypeError, "mask: expected dtype bool, got float32"),
    ({"mask": torch.ones(2, 3, dtype=torch.bool)}, ValueError, r"mask: expected shape \[B, G, L\]"),
    ({"mask": empty_meta(2, 3, 4, dtype=torch.bool)}, ValueError, "mask: expected device cpu"),
    ({"old_log_probs": torch.zeros(2, 3, 5)}, ValueError, r"old_log_probs: .*\[2, 3, 4\], got \[2, 3, 5\]"),
    ({"old_log_probs": torch.zeros(2, 3, 4).long()}, TypeError, "old_log_probs: expected dtype"),
    ({"old_log_probs": empty_meta(2, 3, 4)}, ValueError, "old_log_probs: expected device"),
    ({"ref_log_probs": torch.zeros(2, 3)}, ValueError, "ref_log_probs: expected shape"),
    ({"ref_log_probs": 0.0}, TypeError, "ref_log_probs: expected a tensor"),
    ({"ref_log_probs": empty_meta(2, 3, 4)}, ValueError, "ref_log_probs: expected device"),
    ({"loss_type": "ppo"}, ValueError, "loss_type: expected one of 'grpo', 'dapo', 'dr_grpo', 'gspo', got 'ppo'"),
    ({"epsilon_low": -0.1}, ValueError, "epsilon_low: expected a finite number >= 0, got -0.1"),
    ({"epsilon_low": NAN}, ValueError, "epsilon_low"),
    ({"epsilon_high": -0.1}, ValueError, "epsilon_high"),
    ({"epsilon_high": "0.2"}, TypeError, "epsilon_high: expected a number"),
    ({"beta": 0.1}, ValueError, "ref_log_probs: expected a tensor .*beta 0.1, got None"),
    ({"beta": -0.1}, ValueError, "beta"),
    ({"beta": INF}, ValueError, "beta"),
    ({"valid": torch.ones(2, 3)}, TypeError, "valid: expected dtype bool"),
    ({"valid": torch.ones(3, 2, dtype=torch.bool)}, ValueError, r"valid: .*\[2, 3\], got \[3, 2\]"),
    ({"valid": empty_meta(2, 3, dtype=torch.bool)}, ValueError, "valid: expected device"),
    ({"denominator": 0}, ValueError, "denominator: expected a finite number > 0, got 0"),
    ({"denominator": NAN}, ValueError, "denominator"),
    ({"denominator": "6"}, TypeError, "denominator"),
    ({"denominator": torch.tensor(0.0)}, ValueError, "denominator: expected a finite number > 0"),
    ({"denominator": torch.ones(2)}, ValueError, r"denominator: expected shape \[\]"),
    ({"denominator": torch.tensor(True)}, TypeError, "denominator: expected dtype"),
    ({"denominator": empty_meta()}, ValueError, "denominator: expected device"),
]


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


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        *LOSS_REFUSALS,
        ({"hidden": torch.zeros(2, 3, H)}, ValueError, r"hidden: expected shape \[B, G, L, H\]"),
        ({"hidden": torch.zeros(2, 3, 4, H).long()}, TypeError, "hidden: expected dtype"),
        ({"lm_head_weight": torch.zeros(V, H + 1)}, ValueError, "lm_head_weight: expected shape"),
        ({"lm_head_weight": torch.zeros(V, H).double()}, TypeError, "lm_head_weight: .*hidden, float32, got float64"),
        ({"lm_head_weight": empty_meta(V, H)}, ValueError, "lm_head_weight: expected device"),
        ({"token_ids": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, r"token_ids: expected shape \[B, G, L\]"),
        ({"token_ids": torch.zeros(2, 3, 4)}, TypeError, "token_ids: expected dtype int64"),
        ({"token_ids": torch.full((2, 3, 4), V)}, ValueError, r"token_ids: .*\[0, 7\) or -100, got 7"),
        ({"token_ids": torch.full((2, 3, 4), -1)}, ValueError, "token_ids: .*got -1"),
        ({"token_ids": empty_meta(2, 3, 4, dtype=torch.int64)}, ValueError, "token_ids: expected device"),
        ({"rewards": torch.zeros(2, 4)}, ValueError, r"rewards: .*\[2, 3\], got \[2, 4\]"),
        ({"rewards": torch.zeros(2, 3).bool()}, TypeError, "rewards: expected dtype"),
        ({"rewards": torch.full((2, 3), NAN)}, ValueError, "rewards: expected finite"),
        ({"rewards": empty_meta(2, 3)}, ValueError, "rewards: expected device"),
        ({"scores": None}, ValueError, "scores: expected a tensor .*tawin"),
        ({"scores": torch.zeros(2, 3, 1)}, ValueError, r"scores: expected shape \[B, G\]"),
        ({"scores": torch.full((2, 3), NAN)}, ValueError, "scores: expected no NaN"),
        ({"scores": empty_meta(2, 3)}, ValueError, "scores: expected device"),
        ({"tawin": 2.0}, TypeError, "tawin: expected a TAWin, got float"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"temperature": None}, TypeError, "temperature"),
        ({"bias": torch.zeros(H)}, ValueError, "bias: expected shape"),
        ({"bias": torch.zeros(V).half()}, TypeError, "bias"),
        ({"normalize_std": None}, TypeError, "normalize_std"),
        ({"eps": -1.0}, ValueError, "eps"),
    ],
)
def test_bad_input_of_tawin_grpo_loss_is_refused_by_name(changes, error, message):
    good = {
        "hidden": torch.randn(2, 3, 4, H),
        "lm_head_weight": torch.randn(V, H),
        "token_ids": torch.zeros(2, 3, 4, dtype=torch.int64),
        "mask": torch.ones(2, 3, 4, dtype=torch.bool),
        "rewards": torch.eye(2, 3),
        "scores": torch.zeros(2, 3),
    }
    with pytest.raises(error, match=message):
        tawin_grpo_loss(**{**good, **changes})
