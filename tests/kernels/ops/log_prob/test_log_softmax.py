"""log p of confident tokens: at most 0, and right to the digits that the logits have, in every op that makes it."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from tawin_kernels import ItemTrie, beam_step, linear_log_probs, reference, tawin_grpo_loss

from ...devices import DEVICE

beam_step_module = importlib.import_module("tawin_kernels.ops.beam_step")  # the package has the function by that name

V, H, R = 140, 128, 12
TRIE = ItemTrie.from_sequences([[token] for token in range(100)]).to(DEVICE)


def confident(gap: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden [R, H] and weight [V, H] with logits of some 700, of which token r is ahead by about `gap` in row r.

    Elements are multiples of 1 / 64, so that logits are exact in fp32 whatever the order they are added up in.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-2, 3, (V, H), generator=generator).float() / 4
    hidden = torch.randint(-1, 2, (R, H), generator=generator).float() / 4
    hidden[:, 0], weight[:, 0] = 44.0, 16.0  # what all logits have in common
    # Row r alone has a one in column r + 1, and token r alone a weight there: what it is raised by.
    hidden[:, 1 : R + 1], weight[:, 1 : R + 1] = torch.eye(R), 0.0
    tokens = torch.arange(R)
    logits = hidden @ weight.T
    others = logits.scatter(1, tokens[:, None], -math.inf).amax(-1)
    weight[tokens, tokens + 1] = ((others - logits[tokens, tokens] + gap) * 64).round() / 64
    return hidden.to(DEVICE), weight.to(DEVICE), tokens.to(DEVICE)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@pytest.mark.parametrize(("gap", "rows"), [(2.0, None), (6.0, torch.arange(R)), (10.0, None)])
def test_small_log_probs_keep_their_digits_beside_logits_of_seven_hundred(impl, normalizer, gap, rows):
    hidden, weight, tokens = confident(gap)
    options = {"normalizer": normalizer, "rows": None if rows is None else rows.to(DEVICE)}
    if normalizer == "trie":
        options |= {"trie": TRIE, "nodes": torch.zeros_like(tokens)}
    log_probs, entropy = linear_log_probs(hidden, weight, tokens, impl=impl, with_entropy=True, **options)
    exact, exact_entropy = reference.linear_log_probs(
        hidden.double(), weight.double(), tokens, with_entropy=True, **options
    )
    assert exact.abs().min() < math.exp(-gap) * V
    # What is left is the rounding of 1 + the others' sum, some 2**-24 each, where a logsumexp's last place is 6e-5.
    torch.testing.assert_close(log_probs.double(), exact, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(entropy.double(), exact_entropy, atol=1e-6, rtol=1e-5)

    best = beam_step(
        hidden[:, None],
        weight,
        TRIE,
        torch.zeros(R, 1, dtype=torch.int64, device=DEVICE),
        torch.zeros(R, 1, device=DEVICE),
        1,
        normalizer=normalizer,
        impl=impl,
    )
    assert torch.equal(best.tokens[:, 0], tokens)
    torch.testing.assert_close(best.scores[:, 0].double(), exact, atol=2e-6, rtol=2e-6)


def random_head(size: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits whose last places depend on the order of their sums."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(V, H, generator=generator)
    tokens = torch.randint(0, 100, (R,), generator=generator)
    hidden = size * (torch.randn(R, H, generator=generator) + 2 * weight[tokens])
    return hidden.to(DEVICE), weight.to(DEVICE), tokens.to(DEVICE)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@pytest.mark.parametrize(("size", "temperature"), [(1.0, 1.0), (6.0, 1.0), (1.0, 1e-3), (1.0, 1e-30)])
def test_no_log_prob_is_above_0_and_the_certain_token_has_0(impl, normalizer, size, temperature):
    hidden, weight, tokens = random_head(size)
    nodes = torch.zeros_like(tokens)
    options = {"normalizer": normalizer, "temperature": temperature}
    of_trie = {"trie": TRIE, "nodes": nodes} if normalizer == "trie" else {}
    log_probs = linear_log_probs(hidden, weight, tokens, impl=impl, **options, **of_trie)
    assert log_probs.tolist() == [0.0] * R
    # Several tokens of a row, the certain one among them.
    rows, any_tokens = torch.arange(R, device=DEVICE).repeat(4), torch.cat([tokens, tokens + 1, tokens + 2, tokens])
    any_tokens = any_tokens.clamp(max=99)
    of_trie = {"trie": TRIE, "nodes": torch.zeros_like(any_tokens)} if normalizer == "trie" else {}
    log_probs = linear_log_probs(hidden, weight, any_tokens, rows=rows, impl=impl, **options, **of_trie)
    exact = reference.linear_log_probs(hidden.double(), weight.double(), any_tokens, rows=rows, **options, **of_trie)
    # A logit's last place depends on where its row stands in a tile, and is divided by the temperature.
    last_place = torch.finfo(torch.float32).eps * float((hidden @ weight.T).abs().max()) / temperature
    torch.testing.assert_close(log_probs.double(), exact, atol=1e-3 + last_place, rtol=1e-5)
    assert bool((log_probs <= 0).all())

    step = beam_step(
        hidden[:, None], weight, TRIE, nodes[:, None], torch.zeros(R, 1, device=DEVICE), 4, impl=impl, **options
    )
    assert bool((step.scores <= 0).all())
    assert torch.equal(step.tokens[:, 0], tokens)
    assert step.scores[:, 0].tolist() == [0.0] * R

    loss = tawin_grpo_loss(
        hidden[None, :, None],
        weight,
        tokens[None, :, None],
        torch.ones(1, R, 1, dtype=torch.bool, device=DEVICE),
        torch.eye(R, device=DEVICE)[:1],
        torch.zeros(1, R, device=DEVICE),
        temperature=temperature,
        impl=impl,
    )
    assert not bool(loss.log_probs.any())


def test_gathered_logits_of_certain_children_give_0(monkeypatch):
    # Gathered logits are added up in another order than the row's maximum.
    hidden, weight, tokens = random_head(6.0)
    monkeypatch.setattr(beam_step_module, "_is_gathered", lambda *sizes: True)
    zeros = torch.zeros(R, 1, device=DEVICE)
    for normalizer in ("vocab", "trie"):
        step = beam_step(hidden[:, None], weight, TRIE, zeros.long(), zeros, 2, normalizer=normalizer, impl="triton")
        assert torch.equal(step.tokens[:, 0], tokens)
        assert step.scores[:, 0].tolist() == [0.0] * R
        assert bool((step.scores <= 0).all())
