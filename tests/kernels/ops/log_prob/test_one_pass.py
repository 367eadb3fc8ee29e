"""log p and the gradient of hidden states in one pass: against fp64, unlikely targets, slabs of rows, in the loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tawin_kernels import TAWin, reference, tawin_grpo_loss
from tawin_kernels.ops.log_prob import one_pass as log_prob_one_pass
from tawin_kernels.ops.log_prob.one_pass import triton_one_pass

from ...devices import DEVICE, KERNEL_DTYPES

IGNORED = -100
V = 300
# As for two passes: fp32 sums of products of size one, a rounding of each element of the slab.
LOG_PROB_TOLERANCE = 3e-5
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True, scope="module")
def small_slabs():
    """Slabs of 128 rows at least, as few as there can be."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(log_prob_one_pass, "_MAX_SLAB_BYTES", 1)
        yield


def compare(hidden, weight, bias, token_ids, rows, gradient, temperature=1.0):
    log_probs, of_hidden = triton_one_pass(hidden, weight, bias, token_ids, temperature, rows, gradient)
    wide = hidden.double().requires_grad_()
    expected = reference.linear_log_probs(
        wide,
        weight.double(),
        token_ids,
        rows=rows,
        bias=None if bias is None else bias.double(),
        temperature=temperature,
    )
    (exact,) = torch.autograd.grad(expected, wide, gradient.double())
    torch.testing.assert_close(
        log_probs.double(), expected.detach(), atol=LOG_PROB_TOLERANCE / min(1.0, temperature), rtol=1e-5
    )
    assert (of_hidden.double() - exact).norm() <= GRADIENT_TOLERANCE[hidden.dtype] * exact.norm() + 1e-12
    assert bool((log_probs <= 0).all())
    return log_probs, of_hidden


@settings(max_examples=15)
@given(
    N=st.integers(1, 40),
    H=st.sampled_from([1, 24, 40, 64]),
    dtype=st.sampled_from(KERNEL_DTYPES),
    shared=st.booleans(),
    with_bias=st.booleans(),
    temperature=st.sampled_from([1.0, 0.4, 3.0]),
    seed=st.integers(0, 10**6),
)
def test_values_and_gradient_are_those_of_fp64(N, H, dtype, shared, with_bias, temperature, seed):
    draw = torch.Generator().manual_seed(seed)
    R = max(1, N // 2) if shared else N
    hidden = torch.randn(R, H, generator=draw).to(dtype).to(DEVICE)
    weight = (0.5 * torch.randn(V, H, generator=draw)).to(dtype).to(DEVICE)
    bias = torch.randn(V, generator=draw).to(dtype).to(DEVICE) if with_bias else None
    token_ids = torch.randint(0, V, (N,), generator=draw).to(DEVICE)
    rows = torch.randint(0, R, (N,), generator=draw).to(DEVICE) if shared else None
    gradient = torch.randn(N, generator=draw).to(DEVICE)
    gradient[torch.rand(N, generator=draw).to(DEVICE) < 0.2] = 0.0
    token_ids[torch.rand(N, generator=draw).to(DEVICE) < 0.2] = IGNORED
    compare(hidden, weight, bias, token_ids, rows, gradient * (token_ids != IGNORED), temperature)


@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
@pytest.mark.parametrize("size", [0.5, 3.0, 12.0, 60.0])
def test_targets_much_less_likely_than_other_tokens_overflow_nowhere(dtype, size):
    # Logits up to some 2,000: e relative to the target would be exp(4,000).
    draw = torch.Generator().manual_seed(1)
    hidden = (size * torch.randn(6, 24, generator=draw)).to(dtype).to(DEVICE)
    weight = torch.randn(V, 24, generator=draw).to(dtype).to(DEVICE)
    logits = hidden.float() @ weight.float().T
    token_ids = torch.cat([logits.argmin(-1)[:3], logits.argmax(-1)[3:]])
    compare(hidden, weight, None, token_ids, None, torch.ones(6, device=DEVICE))


def test_more_rows_than_a_slab_has_and_the_same_bits_twice():
    draw = torch.Generator().manual_seed(2)
    hidden, weight = torch.randn(150, 16, generator=draw).to(DEVICE), torch.randn(V, 16, generator=draw).to(DEVICE)
    token_ids = torch.randint(0, V, (150,), generator=draw).to(DEVICE)
    gradient = torch.randn(150, generator=draw).to(DEVICE)
    first = compare(hidden, weight, None, token_ids, None, gradient)
    again = triton_one_pass(hidden, weight, None, token_ids, 1.0, None, gradient)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "cispo"])
@pytest.mark.parametrize("shared", [False, True])
def test_the_loss_takes_one_pass_on_policy_and_gives_what_two_passes_give(monkeypatch, loss_type, shared):
    draw = torch.Generator().manual_seed(3)
    B, G, L, H = 3, 4, 3, 16
    hidden = torch.randn(*((20, H) if shared else (B, G, L, H)), generator=draw).to(DEVICE)
    weight = torch.randn(V, H, generator=draw).to(DEVICE)
    token_ids = torch.randint(0, V, (B, G, L), generator=draw).to(DEVICE)
    options = {
        "tawin": TAWin(),
        "loss_type": loss_type,
        "epsilon_high": 5.0 if loss_type == "cispo" else 0.2,
        "all_log_probs": False,
        "denominator": 7.0,
        "temperature": 0.7,
        "impl": "triton",
        "rows": torch.randint(0, 20, (B, G, L), generator=draw).to(DEVICE) if shared else None,
    }
    mask = torch.rand(B, G, L, generator=draw).to(DEVICE) < 0.8
    rewards = torch.tensor([[1.0, 0, 0, 0], [0.0, 0, 0, 0], [0.0, 0, 1, 0]], device=DEVICE)
    scores = torch.randn(B, G, generator=draw).to(DEVICE)
    calls = []
    one_pass = log_prob_one_pass.one_pass
    monkeypatch.setattr(log_prob_one_pass, "one_pass", lambda *given: (calls.append(1), one_pass(*given))[1])

    def run(trained):
        states, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_(trained)
        result = tawin_grpo_loss(states, head, token_ids, mask, rewards, scores, **options)
        (3.0 * result.loss).backward()  # an upstream factor, as of a sum of losses
        return result, states.grad

    one, of_one = run(trained=False)
    assert calls == [1]
    two, of_two = run(trained=True)  # a trained head takes two passes
    assert calls == [1]
    for got, wanted in zip(one, two, strict=True):
        torch.testing.assert_close(got.detach(), wanted.detach(), atol=2e-5, rtol=1e-5)
    assert not one.log_probs.requires_grad
    torch.testing.assert_close(of_one, of_two, atol=1e-5, rtol=1e-4)
    assert not bool(of_one[1].any()) or shared  # a dead group


def test_old_log_probs_and_no_gradient_take_the_usual_way(monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(log_prob_one_pass, "one_pass", refuse)
    hidden, weight = torch.randn(2, 3, 2, 8, device=DEVICE), torch.randn(V, 8, device=DEVICE)
    token_ids = torch.randint(0, V, (2, 3, 2), device=DEVICE)
    mask, rewards = torch.ones(2, 3, 2, dtype=torch.bool, device=DEVICE), torch.eye(3, device=DEVICE)[:2]
    arguments = (weight, token_ids, mask, rewards, rewards)
    tawin_grpo_loss(hidden, *arguments, all_log_probs=False, impl="triton")
    states = hidden.requires_grad_()
    old = torch.zeros(2, 3, 2, device=DEVICE)
    tawin_grpo_loss(states, *arguments, all_log_probs=False, old_log_probs=old, impl="triton")
    tawin_grpo_loss(states, *arguments, all_log_probs=False, importance_level="sequence", impl="triton")
    tawin_grpo_loss(states, *arguments, all_log_probs=False, loss_type="gspo", impl="triton")
    tawin_grpo_loss(states, *arguments, impl="triton")
    with torch.no_grad():
        tawin_grpo_loss(states, *arguments, all_log_probs=False, impl="triton")
