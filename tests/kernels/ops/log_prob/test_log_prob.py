"""linear_log_probs: values, gradients, ignored tokens, pieces, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tawin_kernels import ItemTrie, linear_log_probs
from tawin_kernels.ops.log_prob import lm_head

from ...brute_force import log_softmax, prefixes_breadth_first

V, H = 6, 4
IGNORED = -100


def tensors(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*shape, H, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(V, H, generator=generator, dtype=torch.float64).to(dtype)
    bias = torch.randn(V, generator=generator, dtype=torch.float64).to(dtype)
    token_ids = torch.randint(0, V, shape, generator=generator)
    return hidden, weight, bias, token_ids


@given(
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.integers(0, 10**6),
    st.sampled_from([1.0, 0.3, 5.0]),
    st.booleans(),
)
def test_values_are_those_of_a_naive_log_softmax_for_any_leading_shape(shape, seed, temperature, with_bias):
    hidden, weight, bias, token_ids = tensors(shape, seed=seed)
    token_ids[torch.rand(shape) < 0.3] = IGNORED
    used_bias = bias if with_bias else None
    log_probs = linear_log_probs(hidden, weight, token_ids, temperature=temperature, bias=used_bias)
    assert log_probs.shape == shape
    assert log_probs.dtype == torch.float64
    expected = [
        0.0 if token == IGNORED else log_softmax(state, weight, used_bias, temperature)[token]
        for state, token in zip(hidden.reshape(-1, H), token_ids.reshape(-1).tolist(), strict=True)
    ]
    assert log_probs.reshape(-1).tolist() == pytest.approx(expected, abs=1e-12)  # fp64, a few terms


# fp32 accumulation over 64 terms of size one: a few units of 2**-24 relative to logits of size ten.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_input_is_accumulated_in_fp32(dtype):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 64, generator=generator).to(dtype)
    weight = torch.randn(50, 64, generator=generator).to(dtype)
    token_ids = torch.randint(0, 50, (9,), generator=generator)
    log_probs = linear_log_probs(hidden, weight, token_ids)
    assert log_probs.dtype == torch.float32
    exact = linear_log_probs(hidden.double(), weight.double(), token_ids)
    torch.testing.assert_close(log_probs.double(), exact, atol=2e-5, rtol=0)


def test_autocast_does_not_lower_the_precision():
    hidden, weight, _, token_ids = tensors((5,), torch.float32)
    expected = linear_log_probs(hidden, weight, token_ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear_log_probs(hidden, weight, token_ids), expected)


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)])
@pytest.mark.parametrize("max_logits", [2**25, 2 * V])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradients_are_right_for_every_set_of_inputs_that_wants_them(monkeypatch, wanted, max_logits, temperature):
    monkeypatch.setattr(lm_head, "MAX_LOGITS", max_logits)  # 2 * V: two rows a piece, computed again in the backward
    hidden, weight, bias, token_ids = tensors((2, 3))
    token_ids[0, 1] = IGNORED
    inputs = [tensor.requires_grad_(bool(flag)) for tensor, flag in zip((hidden, weight, bias), wanted, strict=True)]

    def op(hidden, weight, bias):
        return linear_log_probs(hidden, weight, token_ids, temperature=temperature, bias=bias)

    assert torch.autograd.gradcheck(op, inputs)


@pytest.mark.parametrize("max_logits", [2**25, 2 * V])
def test_a_weight_that_is_also_the_embedding_gets_both_gradients(monkeypatch, max_logits):
    monkeypatch.setattr(lm_head, "MAX_LOGITS", max_logits)
    _, weight, _, token_ids = tensors((5,))

    def op(weight):
        return linear_log_probs(weight[token_ids] * 0.5, weight, token_ids.roll(1))

    assert torch.autograd.gradcheck(op, [weight.requires_grad_()])


def test_pieces_give_the_values_of_all_rows_at_once(monkeypatch):
    hidden, weight, bias, token_ids = tensors((3, 5), torch.float32)
    whole = linear_log_probs(hidden, weight, token_ids, bias=bias)
    monkeypatch.setattr(lm_head, "MAX_LOGITS", 4 * V)
    torch.testing.assert_close(linear_log_probs(hidden, weight, token_ids, bias=bias), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("max_logits", [2**25, V])
def test_an_ignored_token_gives_zero_and_its_nan_reaches_nothing(monkeypatch, max_logits):
    monkeypatch.setattr(lm_head, "MAX_LOGITS", max_logits)
    hidden, weight, bias, token_ids = tensors((4,), torch.float32)
    token_ids[1] = IGNORED
    hidden[1] = math.nan
    inputs = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    log_probs = linear_log_probs(hidden, weight, token_ids, bias=bias)
    assert log_probs[1].item() == 0.0
    log_probs.sum().backward()
    assert all(bool(tensor.grad.isfinite().all()) for tensor in inputs)
    assert hidden.grad[1].tolist() == [0.0] * H


@pytest.mark.parametrize(("shape", "ignored"), [((0,), False), ((2, 0), False), ((3,), True)])
def test_no_row_to_compute_gives_zeros_with_a_gradient_path(shape, ignored):
    hidden, weight, _, token_ids = tensors(shape, torch.float32)
    if ignored:
        token_ids.fill_(IGNORED)
    log_probs = linear_log_probs(hidden.requires_grad_(), weight.requires_grad_(), token_ids)
    assert log_probs.tolist() == torch.zeros(shape).tolist()
    log_probs.sum().backward()
    assert bool((hidden.grad == 0).all())
    assert bool((weight.grad == 0).all())


def test_bf16_gradients_come_in_bf16():
    hidden, weight, _, token_ids = tensors((4,), torch.bfloat16)
    linear_log_probs(hidden.requires_grad_(), weight.requires_grad_(), token_ids).sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_tensors_need_not_be_contiguous():
    hidden, weight, bias, token_ids = tensors((3, 4))
    strided = linear_log_probs(
        hidden.transpose(0, 1), weight.T.contiguous().T, token_ids.T, bias=bias.repeat_interleave(2)[::2]
    )
    torch.testing.assert_close(strided.T, linear_log_probs(hidden, weight, token_ids, bias=bias), atol=1e-13, rtol=0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden": 1.0}, TypeError, "hidden: expected a tensor .*got float"),
        ({"hidden": torch.tensor(1.0)}, ValueError, r"hidden: expected shape \[\*N, H\]"),
        ({"hidden": torch.zeros(2, 3, H, dtype=torch.int64)}, TypeError, "hidden: expected dtype"),
        ({"hidden": torch.randn(2, 3, H + 1)}, ValueError, "lm_head_weight: expected shape"),
        ({"hidden": torch.randn(2, 3, H).bfloat16()}, TypeError, "lm_head_weight: .*hidden, bfloat16, got float32"),
        ({"lm_head_weight": torch.randn(V)}, ValueError, "lm_head_weight: expected shape"),
        (
            {"lm_head_weight": torch.randn(0, H), "token_ids": torch.full((2, 3), IGNORED)},
            ValueError,
            r"lm_head_weight: expected at least one token and one hidden dimension, got \[0, 4\]",
        ),
        (
            {"hidden": torch.randn(2, 3, 0), "lm_head_weight": torch.randn(V, 0)},
            ValueError,
            r"lm_head_weight: expected at least one token and one hidden dimension, got \[6, 0\]",
        ),
        ({"lm_head_weight": None}, TypeError, "lm_head_weight: expected a tensor .*got NoneType"),
        ({"lm_head_weight": torch.empty(V, H, device="meta")}, ValueError, "lm_head_weight: expected device cpu"),
        ({"token_ids": torch.zeros(2, dtype=torch.int64)}, ValueError, r"token_ids: .*\[2, 3\], got \[2\]"),
        ({"token_ids": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "token_ids: expected dtype int64"),
        ({"token_ids": torch.full((2, 3), V)}, ValueError, r"token_ids: expected tokens in \[0, 6\) or -100, got 6"),
        ({"token_ids": torch.full((2, 3), -1)}, ValueError, "token_ids: .*got -1"),
        ({"token_ids": torch.empty(2, 3, dtype=torch.int64, device="meta")}, ValueError, "token_ids: expected device"),
        ({"temperature": 0}, ValueError, "temperature"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"temperature": math.nan}, ValueError, "temperature"),
        ({"temperature": math.inf}, ValueError, "temperature"),
        ({"temperature": 1e-38}, ValueError, "temperature: expected a finite number >= 1e-30, got 1e-38"),
        ({"temperature": None}, TypeError, "temperature"),
        ({"bias": torch.zeros(1, V)}, ValueError, "bias: expected shape"),
        ({"bias": torch.zeros(V, dtype=torch.float64)}, TypeError, "bias"),
        ({"bias": torch.empty(V, device="meta")}, ValueError, "bias: expected device cpu"),
    ],
)
def test_bad_input_is_refused_by_name(changes, error, message):
    good = {
        "hidden": torch.randn(2, 3, H),
        "lm_head_weight": torch.randn(V, H),
        "token_ids": torch.zeros(2, 3, dtype=torch.int64),
    }
    with pytest.raises(error, match=message):
        linear_log_probs(**{**good, **changes})


@pytest.mark.parametrize("max_logits", [2**25, 2 * V])
@pytest.mark.parametrize("with_bias", [False, True])
def test_shared_rows_are_the_expanded_form_with_its_gradients(monkeypatch, max_logits, with_bias):
    monkeypatch.setattr(lm_head, "MAX_LOGITS", max_logits)
    hidden, weight, bias, _ = tensors((4,))
    hidden[3] = math.nan  # no token needs it
    rows, token_ids = torch.tensor([[2, 0, 2], [2, 1, 3]]), torch.tensor([[5, 1, 5], [0, 3, IGNORED]])
    inputs = [hidden, weight, *([bias] if with_bias else [])]

    def shared(hidden, weight, bias=None):
        return linear_log_probs(hidden, weight, token_ids, bias=bias, rows=rows, temperature=0.7)

    def expanded(hidden, weight, bias=None):
        return linear_log_probs(hidden[rows], weight, token_ids, bias=bias, temperature=0.7)

    torch.testing.assert_close(shared(*inputs), expanded(*inputs))
    hidden[3] = 0.0
    assert torch.autograd.gradcheck(shared, [tensor.requires_grad_() for tensor in inputs])


ITEMS = [(0, 1), (0, 4), (2, 1), (2, 3), (2, 5), (3, 3)]


@pytest.mark.parametrize("max_logits", [2**25, 10])
@pytest.mark.parametrize("shared", [False, True])
def test_the_trie_normaliser_is_a_softmax_over_the_children_of_a_node(monkeypatch, max_logits, shared):
    monkeypatch.setattr(lm_head, "MAX_LOGITS", max_logits)
    trie = ItemTrie.from_sequences([list(item) for item in ITEMS])
    hidden, weight, bias, _ = tensors((3,) if shared else (4,))
    prefixes = prefixes_breadth_first(ITEMS)
    nodes = torch.tensor([prefixes.index(prefix) for prefix in ((), (0,), (2,), (3,))])
    token_ids = torch.tensor([2, 4, 1, 3])
    rows = torch.tensor([2, 0, 2, 1]) if shared else None

    def op(hidden, weight, bias):
        return linear_log_probs(
            hidden, weight, token_ids, bias=bias, rows=rows, normalizer="trie", trie=trie, nodes=nodes, temperature=0.7
        )

    states = hidden if rows is None else hidden[rows]
    expected = []
    for state, token, children in zip(states, token_ids.tolist(), ((0, 2, 3), (1, 4), (1, 3, 5), (3,)), strict=True):
        log_probs = log_softmax(state, weight, bias, 0.7)
        expected.append(log_probs[token] - math.log(sum(math.exp(log_probs[child]) for child in children)))
    assert op(hidden, weight, bias).tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(op, [tensor.requires_grad_() for tensor in (hidden, weight, bias)])


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_the_entropy_is_that_of_the_distribution_of_each_token(normalizer):
    trie = ItemTrie.from_sequences([list(item) for item in ITEMS])
    hidden, weight, bias, _ = tensors((3,))
    token_ids, nodes = torch.tensor([2, IGNORED, 1]), torch.tensor([0, 99, 1])
    options = {"trie": trie, "nodes": nodes, "normalizer": "trie"} if normalizer == "trie" else {}
    log_probs, entropy = linear_log_probs(hidden, weight, token_ids, bias=bias, with_entropy=True, **options)
    assert torch.equal(log_probs, linear_log_probs(hidden, weight, token_ids, bias=bias, **options))
    expected = []
    for state, children in ((hidden[0], (0, 2, 3)), (hidden[2], (1, 4))):
        own = log_softmax(state, weight, bias, 1.0)
        chosen = [own[child] for child in (children if normalizer == "trie" else range(V))]
        mass = sum(map(math.exp, chosen))
        expected.append(-sum(math.exp(p) / mass * (p - math.log(mass)) for p in chosen))
    assert entropy.tolist() == pytest.approx([expected[0], 0.0, expected[1]], abs=1e-12)


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_the_entropy_of_a_state_that_is_not_a_number_is_none_either(normalizer):
    trie = ItemTrie.from_sequences([list(item) for item in ITEMS])
    hidden, weight, bias, _ = tensors((2,), torch.float32)
    hidden[1] = math.nan
    bias[2] = -math.inf  # 0 log 0 = 0
    options = {"trie": trie, "nodes": torch.zeros(2).long(), "normalizer": "trie"} if normalizer == "trie" else {}
    _, entropy = linear_log_probs(hidden, weight, torch.tensor([0, 0]), bias=bias, with_entropy=True, **options)
    assert entropy.isnan().tolist() == [False, True]
    chosen = [0, 3] if normalizer == "trie" else [0, 1, 3, 4, 5]
    log_probs = (hidden[0] @ weight.T + bias)[chosen].log_softmax(0)
    torch.testing.assert_close(entropy[0], -(log_probs.exp() * log_probs).sum(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rows": [0, 1, 2]}, ValueError, r"rows: expected shape \[\*N\] = \[2\], got \[3\]"),
        ({"rows": [0, 3]}, ValueError, r"rows: expected rows of hidden in \[0, 3\), got 3 at index \[1\]"),
        ({"normalizer": "children"}, ValueError, "normalizer: expected one of 'vocab', 'trie', got 'children'"),
        ({"trie": True}, ValueError, "trie: expected None with normalizer 'vocab', got ItemTrie"),
        ({"nodes": [0, 0]}, ValueError, "nodes: expected None with normalizer 'vocab', got Tensor"),
        ({"normalizer": "trie", "nodes": [0, 0]}, TypeError, "trie: expected an ItemTrie, got NoneType"),
        ({"normalizer": "trie", "trie": True}, TypeError, r"nodes: expected a tensor \[\*N\], got NoneType"),
        (
            {"normalizer": "trie", "trie": True, "nodes": [0, 99]},
            ValueError,
            r"nodes: expected nodes of the trie in \[0, 10\), got 99 at index \[1\]",
        ),
        (
            {"normalizer": "trie", "trie": True, "nodes": [0, 0]},
            ValueError,
            r"token_ids: expected a child of its node in the trie, got 1 at index \[1\]",
        ),
        ({"with_entropy": 1}, TypeError, "with_entropy: expected True or False, got 1"),
    ],
)
def test_rows_nodes_and_normalisers_that_do_not_fit_are_refused_by_name(options, error, message):
    hidden, weight, _, _ = tensors((3,) if "rows" in options else (2,))
    token_ids = torch.tensor([0, 1])
    options = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in options.items()}
    if "trie" in options:
        options["trie"] = ItemTrie.from_sequences([list(item) for item in ITEMS])
    with pytest.raises(error, match=message):
        linear_log_probs(hidden, weight, token_ids, **options)
