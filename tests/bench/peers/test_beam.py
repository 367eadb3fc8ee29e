"""The peers' beam steps choose what the reference op chooses, on random tries with dead beams and missing children."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tawin_kernels import BeamStep, ItemTrie, reference

from bench.peers import DenseMaskTrie, dense_mask_step, full_softmax_step

VOCABULARY = 30
HIDDEN = 8
# fp32 log-probs of about -5, summed over 30 tokens in another order: 30 roundings of 3e-7 at most, and rarely that.
TOLERANCE = 1e-5
WAYS = ("full_softmax", "dense_mask")


def make_catalogue(seed: int, items: int = 40, codes: int = 5, levels: int = 3) -> ItemTrie:
    """Items with tokens of their own on each level, from token 11 on; nodes have from 1 to `codes` children."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(codes, (items, levels), generator=draw) + 11 + codes * torch.arange(levels)
    return ItemTrie.from_sequences(ids)


def random_step(
    trie: ItemTrie, depth: int, prompts: int, beams: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, LM head, nodes of one depth (several beams may share one) and scores."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(prompts, beams, HIDDEN, generator=draw)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=draw)
    nodes = torch.randint(trie.level_offsets[depth], trie.level_offsets[depth + 1], (prompts, beams), generator=draw)
    return hidden, weight, nodes, torch.randn(prompts, beams, generator=draw)


def peer_step(
    way: str,
    trie: ItemTrie,
    depth: int,
    step: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    beam_width: int,
    normalizer: str,
    *,
    dense_levels: int = 2,
    peer: Callable[..., BeamStep] | None = None,
) -> BeamStep:
    """peer: the compiled function, else the plain one."""
    hidden, weight, nodes, scores = step
    if way == "full_softmax":
        return (peer or full_softmax_step)(
            hidden,
            weight,
            trie.child_offsets,
            trie.edge_tokens,
            nodes,
            scores,
            beam_width,
            max_children=trie.max_children,
            normalizer=normalizer,
        )
    index = DenseMaskTrie.from_trie(trie, dense_levels=dense_levels)
    return (peer or dense_mask_step)(
        hidden, weight, index, nodes, scores, beam_width, depth=depth, normalizer=normalizer
    )


def assert_same(got: BeamStep, expected: BeamStep) -> None:
    """Nothing ties in random states, so the choices are equal one by one."""
    torch.testing.assert_close(got.scores, expected.scores, atol=TOLERANCE, rtol=0)
    for name in ("tokens", "nodes", "parents"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize(("beams", "beam_width"), [(1, 3), (4, 4), (5, 2), (3, 40)])
def test_peers_choose_what_the_reference_chooses(
    way: str, normalizer: str, depth: int, beams: int, beam_width: int
) -> None:
    trie = make_catalogue(seed=beams)
    step = random_step(trie, depth, 3, beams, seed=depth)
    hidden, weight, nodes, scores = step
    expected = reference.beam_step(hidden, weight, trie, nodes, scores, beam_width, normalizer=normalizer)
    if beam_width == 40:
        assert bool((expected.nodes == -1).any()), "no candidate is missing: the case is too easy"
    assert_same(peer_step(way, trie, depth, step, beam_width, normalizer), expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@pytest.mark.parametrize("depth", [1, 2])
def test_dead_beams_are_not_read_and_give_nothing(way: str, normalizer: str, depth: int) -> None:
    trie = make_catalogue(seed=7)
    step = random_step(trie, depth, 3, 4, seed=7)
    hidden, weight, nodes, scores = step
    nodes[0, 1] = -1
    scores[1, 0] = -math.inf
    nodes[2] = -1  # a prompt with no live beam
    hidden[0, 1], hidden[1, 0], hidden[2] = math.nan, math.nan, math.nan
    expected = reference.beam_step(hidden, weight, trie, nodes, scores, 5, normalizer=normalizer)
    assert bool((expected.nodes[2] == -1).all())
    assert_same(peer_step(way, trie, depth, step, 5, normalizer), expected)


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_the_full_softmax_takes_leaves_and_nodes_of_all_depths(normalizer: str) -> None:
    trie = make_catalogue(seed=3)
    draw = torch.Generator().manual_seed(3)
    hidden, weight, _, scores = step = random_step(trie, 0, 4, 6, seed=3)
    nodes = torch.randint(-1, trie.num_nodes, (4, 6), generator=draw)
    nodes[0] = trie.num_nodes - 1  # leaves only
    expected = reference.beam_step(hidden, weight, trie, nodes, scores, 8, normalizer=normalizer)
    assert_same(peer_step("full_softmax", trie, 0, (hidden, weight, nodes, step[3]), 8, normalizer), expected)


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_dense_tables_and_csr_are_two_ways_to_the_same_step(normalizer: str, depth: int) -> None:
    trie = make_catalogue(seed=5)
    step = random_step(trie, depth, 2, 4, seed=5)
    steps = [peer_step("dense_mask", trie, depth, step, 6, normalizer, dense_levels=levels) for levels in (0, 3)]
    assert_same(*steps)


@pytest.mark.parametrize("way", WAYS)
def test_a_peer_compiles_without_a_graph_break(way: str) -> None:
    trie = make_catalogue(seed=9)
    hidden, weight, nodes, scores = step = random_step(trie, 1, 2, 3, seed=9)
    expected = reference.beam_step(hidden, weight, trie, nodes, scores, 4)
    # The tracing is what may break; a code generator would only take longer.
    peer = {"full_softmax": full_softmax_step, "dense_mask": dense_mask_step}[way]
    compiled = torch.compile(peer, fullgraph=True, dynamic=False, backend="aot_eager")
    assert_same(peer_step(way, trie, 1, step, 4, "vocab", peer=compiled), expected)
