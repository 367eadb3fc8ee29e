"""A decode in chains finds what a decode of every step finds, and runs the tokens that a choice waits for."""

from __future__ import annotations

import random

import pytest
import torch
from tawin_kernels import ItemTrie, beam_step, linear_log_probs
from torch import nn

import tawin.search.chains
from tawin.model.backbone import backbone
from tawin.model.tree_attention import prefill
from tawin.search.chains import has_chains
from tawin.search.decode import BeamOptions, Sequences, decode

from ..models import FAMILIES, ragged_prompts, tiny_model

# fp32 log-probs summed over a few tokens; blocks are summed in another order than single steps.
TOLERANCE = 2e-4


def titles(count: int, *, seed: int, begin: tuple[int, ...] = ()) -> list[list[int]]:
    """Items that begin with one of a few words and go on by themselves, some of which share more than that."""
    draw = random.Random(seed)
    found = {
        (*begin, *(draw.randint(3, 6) for _ in range(3)), *(draw.randint(3, 30) for _ in range(draw.randint(0, 9))))
        for _ in range(count)
    }
    for title in sorted(found)[::4]:  # those that part ways late
        found.add((*title[:-1], 31, 32, 33))
    return [list(title) for title in sorted(found)]


def both(model: nn.Module, trie: ItemTrie, width: int, normalizer: str, penalty: float = 0.0) -> list[Sequences]:
    """What a decode in chains finds, and what one of every step does."""
    parts, prompts = backbone(model), ragged_prompts(3, 5)
    options = BeamOptions(trie, width, normalizer, penalty)
    assert has_chains(trie, "trie") and not has_chains(trie, "vocab")
    return [decode(parts, prefill(parts, *prompts), options, in_chains=chained) for chained in (True, False)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("normalizer", ["trie", "vocab"])
@torch.no_grad()
def test_a_decode_in_chains_finds_what_one_of_every_step_finds(family: str, attention: str, normalizer: str) -> None:
    for seed, (width, penalty) in enumerate([(1, 0.0), (5, 0.0), (8, 1.0), (200, 0.0)]):
        model = tiny_model(family, seed=seed, attention=attention)
        trie = ItemTrie.from_sequences(titles(40, seed=seed, begin=(7, 8) * (seed % 2)), end_token=2)
        found, expected = both(model, trie, min(width, trie.num_sequences), normalizer, penalty)
        assert torch.equal(found.nodes, expected.nodes)
        assert torch.equal(found.token_ids, expected.token_ids)
        torch.testing.assert_close(found.scores, expected.scores, atol=TOLERANCE, rtol=0)


def inner_nodes(trie: ItemTrie, normalizer: str) -> int:
    """How many nodes a search that prunes nothing has to run: with "trie" those at a choice or above one."""
    nodes = torch.arange(1, trie.num_nodes)
    return int((trie.has_choice(trie.chain_ends[nodes]) if normalizer == "trie" else ~trie.is_leaf(nodes)).sum())


@pytest.mark.parametrize("normalizer", ["trie", "vocab"])
@pytest.mark.parametrize("begin", [(), (7, 8, 9)])
@torch.no_grad()
def test_each_node_that_is_waited_for_is_run_once_and_no_other(
    normalizer: str, begin: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("qwen2")
    parts, prompts = backbone(model), ragged_prompts(3, 5)
    trie = ItemTrie.from_sequences(titles(40, seed=0, begin=begin), end_token=2)
    tokens, rows = 0, 0

    def count_tokens(_embedding: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal tokens
        tokens += inputs[0].numel()

    def counted_step(hidden: torch.Tensor, weight: torch.Tensor, trie: ItemTrie, nodes: torch.Tensor, *rest, **options):
        nonlocal rows
        rows += int((nodes >= 0).sum())
        return beam_step(hidden, weight, trie, nodes, *rest, **options)

    def counted_log_probs(hidden: torch.Tensor, *rest, **options):
        nonlocal rows
        rows += len(hidden)
        return linear_log_probs(hidden, *rest, **options)

    monkeypatch.setattr(tawin.search.chains, "beam_step", counted_step)
    monkeypatch.setattr(tawin.search.chains, "linear_log_probs", counted_log_probs)
    prompt = prefill(parts, *prompts)
    with model.get_input_embeddings().register_forward_pre_hook(count_tokens):
        found = decode(parts, prompt, BeamOptions(trie, trie.num_sequences, normalizer), in_chains=True)
    assert (found.nodes >= 0).all()
    assert tokens == 3 * inner_nodes(trie, normalizer)
    inner = torch.arange(trie.num_nodes)[~trie.is_leaf(torch.arange(trie.num_nodes))]
    scored = inner[trie.has_choice(inner) | (inner == 0)] if normalizer == "trie" else inner
    assert rows == 3 * len(scored)


@torch.no_grad()
def test_items_that_differ_in_their_first_token_need_no_forward_over_the_trie_and_one_over_the_vocabulary() -> None:
    model = tiny_model("llama")
    parts, prompts = backbone(model), ragged_prompts(3, 5)
    trie = ItemTrie.from_sequences([[first, *range(10, 10 + first)] for first in range(3, 9)])
    for normalizer, expected in (("trie", 0), ("vocab", 1)):
        forwards: list[None] = []
        prompt = prefill(parts, *prompts)
        with model.model.register_forward_pre_hook(lambda *_, forwards=forwards: forwards.append(None)):
            decode(parts, prompt, BeamOptions(trie, 4, normalizer), in_chains=True)
        assert len(forwards) == expected
