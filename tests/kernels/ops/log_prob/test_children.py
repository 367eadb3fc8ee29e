"""Log-probs over the children of a node where nobody checks values, as on a GPU: nodes and tokens that do not exist."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tawin_kernels import ItemTrie
from tawin_kernels.ops.log_prob import lm_head
from tawin_kernels.ops.log_prob.children import triton_child_log_probs

from ...devices import DEVICE

MARGIN = 64
BAD_PAIRS = [(-1, 3), (-7, 3), (99, 3), (0, 2), (1, 3), (3, 6), (5, 1)]  # no such node; no such child; a leaf


def trie_between_margins() -> ItemTrie:
    """A trie of the sequences 1 2 3, 1 4 5, 7 2 2 whose arrays have numbers that look real on either side."""
    trie = ItemTrie.from_sequences([[1, 2, 3], [1, 4, 5], [7, 2, 2]])

    def inside(array: torch.Tensor, filling: int) -> torch.Tensor:
        return torch.nn.functional.pad(array, (MARGIN, MARGIN), value=filling)[MARGIN : MARGIN + len(array)]

    changed = dataclasses.replace(
        trie, child_offsets=inside(trie.child_offsets, -7), edge_tokens=inside(trie.edge_tokens, 4)
    )
    return changed.to(DEVICE)


def head() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(3, 16, generator=generator), torch.randn(8, 16, generator=generator)
    return hidden.to(DEVICE), weight.to(DEVICE)


@pytest.mark.parametrize(("node", "token"), BAD_PAIRS)
def test_a_token_that_is_no_child_of_its_node_has_no_probability_and_harms_no_other(node, token):
    trie, (hidden, weight) = trie_between_margins(), head()
    hidden.requires_grad_()
    nodes, tokens = torch.tensor([0, node, 1], device=DEVICE), torch.tensor([1, token, 4], device=DEVICE)
    log_probs, entropy = triton_child_log_probs(hidden, weight, None, tokens, None, trie, nodes, 1.0, True)
    good = torch.tensor([0, 2], device=DEVICE)
    right = (weight @ hidden.T).T
    expected = torch.stack([right[0, [1, 7]].log_softmax(-1)[0], right[2, [2, 4]].log_softmax(-1)[1]])
    assert log_probs[1].item() == -math.inf
    assert entropy.isfinite().all()
    torch.testing.assert_close(log_probs[good], expected, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(log_probs[good].sum(), hidden)
    (exact,) = torch.autograd.grad(expected.sum(), hidden)
    torch.testing.assert_close(gradient, exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("node", "token"), BAD_PAIRS)
def test_the_reference_says_the_same_where_values_go_unchecked(node, token):
    trie, (hidden, weight) = trie_between_margins(), head()
    nodes, tokens = torch.tensor([0, node, 1], device=DEVICE), torch.tensor([1, token, 4], device=DEVICE)
    log_probs = lm_head.token_log_probs(hidden, weight, None, tokens, 1.0, normalizer="trie", trie=trie, nodes=nodes)
    kernel, _ = triton_child_log_probs(hidden, weight, None, tokens, None, trie, nodes, 1.0, False)
    assert log_probs[1].item() == -math.inf
    torch.testing.assert_close(log_probs, kernel, atol=1e-5, rtol=1e-5)
