"""linear_log_probs in Triton against the reference op in fp64: values, gradients, rows without work, same bits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tawin_kernels import ItemTrie, linear_log_probs, reference
from tawin_kernels.ops.log_prob import children as child_log_prob
from tawin_kernels.ops.log_prob import gradient as log_prob_gradient

from ...devices import DEVICE, KERNEL_DTYPES

IGNORED = -100
V = 700

# Log-probs: fp32 sums of up to 64 products of size one. Gradients, relative to their norm: fp32 sums for fp32, one
# rounding of each slab's element and of the result for the others (2**-11 for fp16, 2**-8 for bf16).
LOG_PROB_TOLERANCE = 3e-5
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True, scope="module")
def small_pieces():
    """Small shapes take the paths of large ones: several slabs, blocks of rows, columns, children, pieces of pairs."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(log_prob_gradient, "_MAX_SLAB_BYTES", 2**12)
        monkeypatch.setattr(log_prob_gradient, "_MAX_SLAB_ROWS", 8)
        monkeypatch.setattr(child_log_prob, "_MAX_LOGITS", 2**10)
        monkeypatch.setattr(child_log_prob, "_CHILDREN_AT_ONCE", 32)
        yield


def catalogue() -> torch.Tensor:
    """int64 [200, 3]: a wide root, nodes of a few children, and, further down, of one."""
    draw = torch.Generator().manual_seed(0)
    levels = [torch.randint(0, count, (200,), generator=draw) * step for count, step in ((60, 11), (6, 97), (V, 1))]
    return torch.stack(levels, 1)


TRIE = ItemTrie.from_sequences(catalogue()).to(DEVICE)


def case(N: int, H: int, dtype: torch.dtype, seed: int, *, shared: bool = False, normalizer: str = "vocab"):
    """Arguments of a call (hidden, weight, bias, token_ids, options) and a gradient [N], zeros and -100 among them."""
    generator = torch.Generator().manual_seed(seed)
    R = max(1, N // 2) if shared else N
    hidden = torch.randn(R, H, generator=generator).to(dtype).to(DEVICE).requires_grad_()
    weight = (0.5 * torch.randn(V, H, generator=generator)).to(dtype).to(DEVICE).requires_grad_()
    bias = torch.randn(V, generator=generator).to(dtype).to(DEVICE).requires_grad_()
    token_ids = torch.randint(0, V, (N,), generator=generator).to(DEVICE)
    options = {}
    if normalizer == "trie":
        inner = (~TRIE.is_leaf(torch.arange(TRIE.num_nodes, device=DEVICE))).nonzero().squeeze(1)
        nodes = inner[torch.randint(0, len(inner), (N,), generator=generator).to(DEVICE)]
        token_ids = TRIE.edge_tokens[TRIE.child_offsets[nodes + 1].long() - 1].long()
        options = {"normalizer": "trie", "trie": TRIE, "nodes": nodes}
    if shared:
        options["rows"] = torch.randint(0, R, (N,), generator=generator).to(DEVICE)
    gradient = torch.randn(N, generator=generator).to(DEVICE)
    gradient[torch.rand(N, generator=generator).to(DEVICE) < 0.3] = 0.0
    token_ids[torch.rand(N, generator=generator).to(DEVICE) < 0.2] = IGNORED
    return (hidden, weight, bias), token_ids, options, gradient


def run(op, inputs, token_ids, options, gradient):
    """Log-probs and the gradients of hidden, weight and bias."""
    hidden, weight, bias = inputs
    log_probs = op(hidden, weight, token_ids, bias=bias, **options)
    return log_probs, torch.autograd.grad(log_probs, inputs, gradient.to(log_probs.dtype))


def compare(inputs, token_ids, options, gradient):
    log_probs, gradients = run(linear_log_probs, inputs, token_ids, {**options, "impl": "triton"}, gradient)
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected, expected_gradients = run(reference.linear_log_probs, wide, token_ids, options, gradient)
    assert log_probs.dtype == torch.float32
    scale = max(1.0, 1.0 / options.get("temperature", 1.0))
    torch.testing.assert_close(log_probs.double(), expected, atol=LOG_PROB_TOLERANCE * scale, rtol=0)
    for got, exact, tensor in zip(gradients, expected_gradients, inputs, strict=True):
        assert got.dtype == tensor.dtype
        error = (got.double() - exact).norm()
        # Where a node has one child the gradient is 0, and what is left of c (1 - p) is the rounding of log p.
        dust = 0.2 * LOG_PROB_TOLERANCE * scale * gradient.norm()
        assert error <= GRADIENT_TOLERANCE[tensor.dtype] * exact.norm() + dust


@settings(max_examples=25)
@given(
    N=st.integers(1, 40),
    H=st.sampled_from([1, 8, 24, 40, 64]),
    dtype=st.sampled_from(KERNEL_DTYPES),
    shared=st.booleans(),
    normalizer=st.sampled_from(["vocab", "trie"]),
    temperature=st.sampled_from([1.0, 0.4, 3.0]),
    seed=st.integers(0, 10**6),
)
def test_values_and_gradients_are_those_of_fp64(N, H, dtype, shared, normalizer, temperature, seed):
    inputs, token_ids, options, gradient = case(N, H, dtype, seed, shared=shared, normalizer=normalizer)
    compare(inputs, token_ids, {**options, "temperature": temperature}, gradient)


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)])
def test_only_the_gradients_that_are_needed_are_made_and_they_are_the_same(normalizer, wanted):
    inputs, token_ids, options, gradient = case(20, 24, torch.float32, 0, shared=True, normalizer=normalizer)
    options["impl"] = "triton"
    _, expected = run(linear_log_probs, inputs, token_ids, options, gradient)
    some = [tensor.detach().requires_grad_(bool(flag)) for tensor, flag in zip(inputs, wanted, strict=True)]
    log_probs = linear_log_probs(some[0], some[1], token_ids, bias=some[2], **options)
    log_probs.backward(gradient)
    for tensor, flag, exact in zip(some, wanted, expected, strict=True):
        assert (tensor.grad is not None) == bool(flag)
        if flag:
            torch.testing.assert_close(tensor.grad, exact, atol=1e-6, rtol=1e-6)  # other blocks of rows, fp32 sums


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@pytest.mark.parametrize("shared", [False, True])
def test_the_states_of_ignored_tokens_and_of_tokens_without_a_coefficient_do_no_harm(normalizer, shared):
    inputs, token_ids, options, gradient = case(24, 16, torch.float32, 1, shared=shared, normalizer=normalizer)
    rows = options.get("rows", torch.arange(24, device=DEVICE))
    used = torch.zeros(len(inputs[0]), dtype=torch.bool, device=DEVICE)
    used[rows[token_ids != IGNORED]] = True
    assert not bool(used.all())
    options["impl"] = "triton"
    log_probs, gradients = run(linear_log_probs, inputs, token_ids, options, gradient)
    with torch.no_grad():
        inputs[0][~used] = math.nan
    same_log_probs, same_gradients = run(linear_log_probs, inputs, token_ids, options, gradient)
    assert torch.equal(log_probs, same_log_probs)  # and the same bits on two runs
    for one, other in zip(gradients, same_gradients, strict=True):
        assert torch.equal(one, other)
    assert bool((log_probs[token_ids == IGNORED] == 0).all())
    assert bool((gradients[0][~used] == 0).all())

    # Without a coefficient: rows whose states are broken by the time of the backward pass are not looked at.
    log_probs = linear_log_probs(*inputs[:2], token_ids, bias=inputs[2], **options)
    live = torch.zeros_like(used)
    live[rows[(token_ids != IGNORED) & (gradient != 0)]] = True
    with torch.no_grad():
        inputs[0].data[~live] = math.nan
    again = torch.autograd.grad(log_probs, inputs, gradient)
    for one, other in zip(gradients, again, strict=True):
        assert torch.equal(one, other)


def test_rows_whose_coefficients_cancel_have_the_sparse_part_alone(monkeypatch):
    slabs = []
    make_slab = log_prob_gradient.gradient_slab
    monkeypatch.setattr(log_prob_gradient, "gradient_slab", lambda *arguments: (slabs.append(1), make_slab(*arguments)))
    inputs, _, _, _ = case(4, 16, torch.float32, 2)
    rows = torch.tensor([0, 0, 0, 2, 2, 3], device=DEVICE)
    token_ids = torch.tensor([5, 600, 7, 7, 8, 9], device=DEVICE)
    cancelling = torch.tensor([0.1, 0.2, -0.3, 4.0, -4.0, 0.0], device=DEVICE)  # 0.1 + 0.2 - 0.3 leaves rounding dust
    compare(inputs, token_ids, {"rows": rows}, cancelling)
    assert slabs == []
    cancelling[-1] = 1.0  # one row with a dense part among them
    compare(inputs, token_ids, {"rows": rows}, cancelling)
    assert slabs != []


def test_coefficients_that_fp16_could_not_hold_are_not_lost():
    # A coefficient of 1e-5 times a probability of 1e-3 is below fp16's smallest number, 6e-8; times weights of size 50
    # the gradient of the hidden states is not.
    inputs, token_ids, _, gradient = case(8, 16, torch.float16, 3)
    hidden, weight = (0.05 * inputs[0]).detach().requires_grad_(), (100.0 * inputs[1]).detach()
    gradient = 1e-5 * gradient
    log_probs = linear_log_probs(hidden, weight, token_ids, impl="triton")
    (got,) = torch.autograd.grad(log_probs, hidden, gradient)
    wide = hidden.detach().double().requires_grad_()
    log_probs = reference.linear_log_probs(wide, weight.double(), token_ids)
    (exact,) = torch.autograd.grad(log_probs, wide, gradient.double())
    assert (got.double() - exact).norm() <= GRADIENT_TOLERANCE[torch.float16] * exact.norm()


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_a_coefficient_that_is_not_finite_spoils_its_own_row_alone(normalizer, broken):
    inputs, token_ids, options, gradient = case(12, 16, torch.float16, 11, normalizer=normalizer)
    _, (expected, *_) = run(linear_log_probs, inputs, token_ids, {**options, "impl": "triton"}, gradient)
    at = int(((token_ids != IGNORED) & (gradient != 0)).nonzero()[0])
    gradient[at] = broken
    _, (got, *_) = run(linear_log_probs, inputs, token_ids, {**options, "impl": "triton"}, gradient)
    others = torch.arange(12, device=DEVICE) != at
    assert not bool(got[at].isfinite().all())
    # The unit may be another one: below it, fp16's subnormal numbers.
    torch.testing.assert_close(got[others], expected[others], rtol=2**-9, atol=1e-5)


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_a_second_derivative_is_refused_and_not_silently_zero(normalizer):
    inputs, token_ids, options, gradient = case(6, 8, torch.float32, 10, normalizer=normalizer)
    _, expected = run(linear_log_probs, inputs, token_ids, {**options, "impl": "triton"}, gradient)
    hidden, weight, bias = inputs
    log_probs = linear_log_probs(hidden, weight, token_ids, bias=bias, impl="triton", **options)
    gradients = torch.autograd.grad(log_probs, inputs, gradient, create_graph=True)
    assert all(torch.equal(got, wanted) for got, wanted in zip(gradients, expected, strict=True))
    with pytest.raises(RuntimeError, match="differentiate twice"):
        (log_probs.sum() + gradients[0].square().sum()).backward()


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_nothing_to_do_gives_zeros(normalizer):
    inputs, token_ids, options, gradient = case(5, 8, torch.float32, 4, normalizer=normalizer)
    options["impl"] = "triton"
    for tokens, weights in ((token_ids.fill_(IGNORED), gradient), (token_ids, torch.zeros_like(gradient))):
        log_probs, gradients = run(linear_log_probs, inputs, tokens, options, weights)
        assert not bool(log_probs.any())
        assert not any(bool(tensor.any()) for tensor in gradients)
    assert linear_log_probs(inputs[0][:0], inputs[1], token_ids[:0], impl="triton").shape == (0,)


def test_a_weight_that_is_also_the_embedding_gets_both_gradients():
    inputs, token_ids, _, gradient = case(9, 16, torch.float32, 5)
    gradients = []
    for weight, op, impl in (
        (inputs[1], linear_log_probs, "triton"),
        (inputs[1].detach().double().requires_grad_(), reference.linear_log_probs, "auto"),
    ):
        log_probs = op(weight[token_ids.clamp(min=0)] * 0.5, weight, token_ids.roll(1), impl=impl)
        gradients.append(torch.autograd.grad(log_probs, weight, gradient.to(weight.dtype))[0].double())
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_a_lora_on_the_head_gets_its_true_gradient():
    inputs, token_ids, _, gradient = case(9, 16, torch.float32, 6)
    low, high = (torch.randn(size, device=DEVICE) for size in ((2, 16), (V, 2)))
    gradients = []
    for dtype, op, impl in (
        (torch.float32, linear_log_probs, "triton"),
        (torch.float64, reference.linear_log_probs, "auto"),
    ):
        factors = [factor.to(dtype).requires_grad_() for factor in (low, high)]
        weight = inputs[1].detach().to(dtype) + factors[1] @ factors[0]
        log_probs = op(inputs[0].detach().to(dtype), weight, token_ids, impl=impl)
        gradients.append(torch.autograd.grad(log_probs, factors, gradient.to(dtype)))
    for got, exact in zip(*gradients, strict=True):
        assert (got.double() - exact).norm() <= 1e-5 * exact.norm()


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@pytest.mark.parametrize("shared", [False, True])
def test_the_entropy_comes_along_without_a_gradient(normalizer, shared):
    inputs, token_ids, options, _ = case(12, 16, torch.float32, 7, shared=shared, normalizer=normalizer)
    hidden, weight, bias = inputs
    log_probs, entropy = linear_log_probs(
        hidden, weight, token_ids, bias=bias, with_entropy=True, temperature=0.6, impl="triton", **options
    )
    assert log_probs.requires_grad and not entropy.requires_grad
    _, expected = reference.linear_log_probs(
        *(tensor.double() for tensor in (hidden, weight)),
        token_ids,
        bias=bias.double(),
        with_entropy=True,
        temperature=0.6,
        **options,
    )
    torch.testing.assert_close(entropy.double(), expected, atol=LOG_PROB_TOLERANCE, rtol=0)


def test_leading_shapes_and_strided_arguments_are_taken_as_they_are():
    inputs, token_ids, _, _ = case(24, 16, torch.float32, 8)
    hidden, weight, _ = inputs
    flat = linear_log_probs(hidden, weight, token_ids, impl="triton")
    grid = linear_log_probs(hidden.view(2, 3, 4, 16), weight, token_ids.view(2, 3, 4), impl="triton")
    assert torch.equal(grid.flatten(), flat)
    strided = linear_log_probs(
        hidden.T.contiguous().T, weight.T.contiguous().T, torch.stack([token_ids, token_ids], 1)[:, 0], impl="triton"
    )
    assert torch.equal(strided, flat)
    shared_state = linear_log_probs(hidden[:1].expand(24, 16), weight, token_ids, impl="triton")
    deduplicated = linear_log_probs(hidden[:1], weight, token_ids, rows=torch.zeros_like(token_ids), impl="triton")
    # One row takes smaller tiles than 24 do, and another tile may add up in another order.
    torch.testing.assert_close(shared_state, deduplicated, atol=LOG_PROB_TOLERANCE, rtol=0)


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_tokens_of_an_inference_mode_rollout_may_be_trained_on(normalizer):
    inputs, token_ids, options, gradient = case(8, 16, torch.float32, 9, shared=True, normalizer=normalizer)
    expected, _ = run(linear_log_probs, inputs, token_ids, {**options, "impl": "triton"}, gradient)
    with torch.inference_mode():
        token_ids = token_ids.clone()
        options = {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in options.items()}
    got, _ = run(linear_log_probs, inputs, token_ids, {**options, "impl": "triton"}, gradient)
    assert torch.equal(got, expected)
