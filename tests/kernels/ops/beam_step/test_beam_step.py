"""beam_step: against an enumeration of all candidates, ties, dead beams, missing candidates, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tawin_kernels import ItemTrie, beam_step
from tawin_kernels.ops.log_prob import lm_head

from ...brute_force import beam_candidates, is_sound

V, H = 7, 3
INF = math.inf
NAN = math.nan

# Every item ends with token 6, which no item contains, so that items of any length go together.
catalogues = st.lists(
    st.lists(st.integers(0, 5), min_size=1, max_size=3).map(lambda item: (*item, 6)), min_size=1, max_size=12
)


def tensors(seed: int, B: int, W: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, W, H, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(V, H, generator=generator, dtype=torch.float64).to(dtype)
    bias = torch.randn(V, generator=generator, dtype=torch.float64).to(dtype)
    return hidden, weight, bias


def beams(data: st.DataObject, trie: ItemTrie, B: int, W: int, scores) -> tuple[list, list]:
    node = st.integers(-1, trie.num_nodes - 1)
    rows = [[(data.draw(node), data.draw(scores)) for _ in range(W)] for _ in range(B)]
    return [[n for n, _ in row] for row in rows], [[s for _, s in row] for row in rows]


@given(
    catalogues,
    st.integers(0, 10**6),
    st.integers(1, 2),
    st.integers(1, 4),
    st.integers(1, 30),
    st.sampled_from(["vocab", "trie"]),
    st.sampled_from([1.0, 0.7, 3.0]),
    st.booleans(),
    st.data(),
)
def test_the_best_of_all_enumerated_candidates_are_returned(
    items, seed, B, W, beam_width, normalizer, temperature, with_bias, data
):
    trie = ItemTrie.from_sequences([list(item) for item in items])
    hidden, weight, bias = tensors(seed, B, W)
    nodes, scores = beams(data, trie, B, W, st.floats(-5, 0) | st.just(-INF))
    step = beam_step(
        hidden,
        weight,
        trie,
        torch.tensor(nodes),
        torch.tensor(scores, dtype=torch.float64),
        beam_width,
        normalizer=normalizer,
        temperature=temperature,
        bias=bias if with_bias else None,
    )
    is_sound(step, trie, beam_width)
    for b in range(B):
        candidates = beam_candidates(
            hidden[b], weight, items, nodes[b], scores[b], normalizer, temperature, bias if with_bias else None
        )
        returned = step.scores[b][step.scores[b] > -INF].tolist()
        best = sorted((score for score, _ in candidates.values()), reverse=True)[:beam_width]
        assert returned == pytest.approx(best, abs=1e-12)  # fp64, a few terms
        for i, score in enumerate(returned):
            expected_score, node = candidates[int(step.parents[b, i]), int(step.tokens[b, i])]
            assert score == pytest.approx(expected_score, abs=1e-12)
            assert int(step.nodes[b, i]) == node


@given(
    catalogues,
    st.integers(1, 2),
    st.integers(1, 5),
    st.integers(1, 30),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.data(),
)
def test_ties_go_to_the_lower_parent_then_the_lower_edge(items, B, W, beam_width, dtype, data):
    # All tokens are equally likely, so scores tie wherever the beams' scores do; -0.0 ties with +0.0.
    trie = ItemTrie.from_sequences([list(item) for item in items])
    nodes, scores = beams(data, trie, B, W, st.sampled_from([0.0, -0.0, -1.0, -2.0, -INF]))
    step = beam_step(
        torch.ones(B, W, H, dtype=dtype),
        torch.zeros(1, H, dtype=dtype).expand(V, H),
        trie,
        torch.tensor(nodes),
        torch.tensor(scores),
        beam_width,
    )
    is_sound(step, trie, beam_width)
    for b in range(B):
        candidates = [
            (-scores[b][parent], parent, child)
            for parent, node in enumerate(nodes[b])
            if node >= 0 and scores[b][parent] > -INF
            for child in range(int(trie.child_offsets[node]) + 1, int(trie.child_offsets[node + 1]) + 1)
        ]
        expected = sorted(candidates)[:beam_width]
        expected += [(INF, 0, -1)] * (beam_width - len(expected))
        assert step.parents[b].tolist() == [parent for _, parent, _ in expected]
        assert step.nodes[b].tolist() == [node for _, _, node in expected]
        expected_scores = [-score - math.log(V) for score, _, _ in expected]
        assert step.scores[b].tolist() == pytest.approx(expected_scores, abs=1e-6)  # fp32 near two


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@pytest.mark.parametrize(("node", "score"), [(-1, 0.0), (0, -INF), (-1, -INF)])
def test_a_dead_beam_is_never_expanded_and_its_hidden_state_never_read(normalizer, node, score):
    trie = ItemTrie.from_sequences([[0, 1], [2, 3]])
    hidden, weight, _ = tensors(0, 2, 2, torch.float32)
    hidden[:, 0] = NAN
    nodes, scores = torch.tensor([[node, 0]] * 2), torch.tensor([[score, -1.0]] * 2)
    step = beam_step(hidden, weight, trie, nodes, scores, 4, normalizer=normalizer)
    alone = beam_step(hidden[:, 1:], weight, trie, nodes[:, 1:], scores[:, 1:], 4, normalizer=normalizer)
    assert bool((step.parents[:, :2] == 1).all())
    assert torch.equal(step.scores, alone.scores)
    assert torch.equal(step.tokens, alone.tokens)
    assert torch.equal(step.nodes, alone.nodes)
    assert torch.isfinite(step.scores).tolist() == [[True, True, False, False]] * 2


def test_a_beam_at_a_leaf_has_no_candidates_and_is_not_read():
    trie = ItemTrie.from_sequences([[0, 1], [2, 3]])
    hidden, weight, _ = tensors(0, 1, 2, torch.float32)
    hidden[0, 0] = NAN
    step = beam_step(hidden, weight, trie, torch.tensor([[3, 1]]), torch.zeros(1, 2), 3)
    assert step.tokens.tolist() == [[1, -1, -1]]
    assert step.parents.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(("B", "W"), [(0, 3), (3, 0), (0, 0), (2, 3)])
def test_no_live_beam_at_all_gives_only_missing_candidates(B, W):
    trie = ItemTrie.from_sequences([[0, 1], [2, 3]])
    for normalizer in ("vocab", "trie"):
        step = beam_step(
            torch.full((B, W, H), NAN),
            torch.randn(V, H),
            trie,
            torch.full((B, W), -1),
            torch.zeros(B, W),
            4,
            normalizer=normalizer,
        )
        is_sound(step, trie, 4)
        assert bool((step.scores == -INF).all())
        assert step.scores.shape == (B, 4)


def test_candidates_at_minus_infinity_or_nan_are_missing():
    trie = ItemTrie.from_sequences([[0], [1], [2]])
    hidden, weight, _ = tensors(0, 1, 2, torch.float32)
    bias = torch.zeros(V)
    bias[1] = -INF
    nodes, scores = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2)
    for normalizer in ("vocab", "trie"):
        step = beam_step(hidden[:, :1], weight, trie, nodes[:, :1], scores[:, :1], 3, bias=bias, normalizer=normalizer)
        assert sorted(step.tokens[0].tolist()) == [-1, 0, 2]
        is_sound(step, trie, 3)
        hidden[0, 1] = NAN  # a live beam whose hidden state is NaN has only missing candidates
        step = beam_step(hidden, weight, trie, nodes, scores, 6, normalizer=normalizer)
        assert step.parents[0, :3].tolist() == [0, 0, 0]
        assert step.tokens[0, 3:].tolist() == [-1, -1, -1]
        is_sound(step, trie, 6)


def test_a_node_whose_children_are_all_at_minus_infinity_gives_none_under_trie_normalization():
    trie = ItemTrie.from_sequences([[0], [1]])
    bias = torch.tensor([-INF, -INF, *[0.0] * (V - 2)])
    step = beam_step(
        torch.randn(1, 1, H),
        torch.randn(V, H),
        trie,
        torch.zeros(1, 1, dtype=torch.int64),
        torch.zeros(1, 1),
        2,
        bias=bias,
        normalizer="trie",
    )
    assert step.nodes.tolist() == [[-1, -1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_half_precision_input_is_accumulated_in_fp32(dtype, normalizer):
    trie = ItemTrie.from_sequences([[0, 1], [2, 3], [4, 5]])
    hidden, weight, bias = tensors(1, 2, 2, dtype)
    nodes, scores = torch.tensor([[0, 1], [2, -1]]), torch.tensor([[-1.0, -0.5], [0.0, 0.0]])
    arguments = (trie, nodes, scores, 5)
    step = beam_step(hidden, weight, *arguments, bias=bias, normalizer=normalizer)
    wide = beam_step(hidden.float(), weight.float(), *arguments, bias=bias.float(), normalizer=normalizer)
    assert all(torch.equal(a, b) for a, b in zip(step[1:], wide[1:], strict=True))
    # A few units in fp32's last place: with TRITON_INTERPRET=1 the wide one alone is a kernel's. bf16 has 2**-8.
    torch.testing.assert_close(step.scores, wide.scores, atol=1e-6, rtol=1e-6)
    assert step.scores.dtype == torch.float32


def test_autocast_does_not_lower_the_precision():
    trie = ItemTrie.from_sequences([[0, 1], [2, 3]])
    hidden, weight, _ = tensors(2, 2, 1, torch.float32)
    arguments = (hidden, weight, trie, torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1), 2)
    expected = beam_step(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(beam_step(*arguments).scores, expected.scores)


def test_scores_stay_fp64_with_fp64_hidden_states():
    trie = ItemTrie.from_sequences([[0, 1], [2, 3]])
    hidden, weight, _ = tensors(2, 1, 1)
    score = torch.tensor([[-1.0 - 1e-12]], dtype=torch.float64)
    step = beam_step(hidden, weight, trie, torch.tensor([[0]]), score, 2)
    expected = score[0] + (hidden[0] @ weight.T).log_softmax(-1)[0, [0, 2]].sort(descending=True).values
    torch.testing.assert_close(step.scores[0], expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_rows_in_pieces_give_what_all_rows_at_once_give(monkeypatch, normalizer):
    trie = ItemTrie.from_sequences([[a, b, 6] for a in range(3) for b in range(a + 1)])
    hidden, weight, bias = tensors(3, 3, 4)
    nodes = torch.tensor([[0, 1, -1, 2], [3, 3, 0, 4], [-1, -1, 2, 9]])
    arguments = (hidden, weight, trie, nodes, torch.zeros(3, 4), 8)
    whole = beam_step(*arguments, normalizer=normalizer, bias=bias)
    monkeypatch.setattr(lm_head, "MAX_LOGITS", 2 * V)
    pieces = beam_step(*arguments, normalizer=normalizer, bias=bias)
    torch.testing.assert_close(pieces.scores, whole.scores, atol=1e-13, rtol=0)
    assert torch.equal(pieces.nodes, whole.nodes)


def test_steps_chain_to_the_best_items():
    # With beams wide enough to hold the catalogue, three steps are an exhaustive search.
    items = [[a, b, c] for a in range(3) for b in range(2) for c in range(b + 1, 4)]
    trie = ItemTrie.from_sequences(items)
    weight = torch.randn(V, H, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hidden = torch.randn(1, 3, H, generator=torch.Generator().manual_seed(1), dtype=torch.float64)  # a state a depth
    nodes, scores = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.float64)
    for depth in range(3):
        step = beam_step(hidden[:, depth : depth + 1].expand(1, nodes.shape[1], H), weight, trie, nodes, scores, 20)
        nodes, scores = step.nodes, step.scores
    log_probs = (hidden[0] @ weight.T).log_softmax(-1)
    totals = torch.stack([sum(log_probs[d, item[d]] for d in range(3)) for item in items])
    order = totals.argsort(descending=True)
    torch.testing.assert_close(scores[0, : len(items)], totals[order], atol=1e-12, rtol=0)
    assert [trie.items_at(int(node)).item() for node in nodes[0, : len(items)]] == order.tolist()


def good() -> dict:
    return {
        "hidden": torch.randn(2, 3, H),
        "lm_head_weight": torch.randn(V, H),
        "trie": ItemTrie.from_sequences([[0, 1], [2, 3]]),
        "nodes": torch.zeros(2, 3, dtype=torch.int64),
        "scores": torch.zeros(2, 3),
        "beam_width": 2,
    }


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden": torch.randn(2, H)}, ValueError, r"hidden: expected shape \[B, W, H\], got \[2, 3\]"),
        ({"hidden": torch.zeros(2, 3, H, dtype=torch.int64)}, TypeError, "hidden: expected dtype .*got int64"),
        ({"hidden": [[1.0]]}, TypeError, "hidden: expected a tensor .*got list"),
        ({"lm_head_weight": torch.randn(V, H + 1)}, ValueError, r"lm_head_weight: expected shape .*got \[7, 4\]"),
        ({"lm_head_weight": torch.randn(V)}, ValueError, r"lm_head_weight: expected shape \[V, H\]"),
        ({"lm_head_weight": torch.randn(V, H).half()}, TypeError, "lm_head_weight: .*hidden, float32, got float16"),
        ({"lm_head_weight": torch.empty(V, H, device="meta")}, ValueError, "lm_head_weight: expected device cpu"),
        ({"lm_head_weight": torch.randn(3, H)}, ValueError, "trie: expected tokens below the 3 rows .*got token 3"),
        ({"trie": [[0, 1]]}, TypeError, "trie: expected an ItemTrie, got list"),
        ({"trie": ItemTrie.from_sequences([[0]]).to("meta")}, ValueError, "trie: expected device cpu .*got meta"),
        ({"nodes": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, r"nodes: .*\[2, 3\], got \[2, 2\]"),
        ({"nodes": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "nodes: expected dtype int64, got int32"),
        ({"nodes": torch.full((2, 3), 5)}, ValueError, r"nodes: .*\[-1, 5\), got 5 at index \[0, 0\]"),
        ({"nodes": torch.full((2, 3), -2)}, ValueError, r"nodes: .*\[-1, 5\), got -2"),
        ({"nodes": torch.empty(2, 3, dtype=torch.int64, device="meta")}, ValueError, "nodes: expected device cpu"),
        ({"scores": torch.zeros(3, 2)}, ValueError, r"scores: .*\[2, 3\], got \[3, 2\]"),
        ({"scores": torch.zeros(2, 3, dtype=torch.float64)}, TypeError, "scores: expected dtype float32, got float64"),
        ({"scores": torch.zeros(2, 3, dtype=torch.float16)}, TypeError, "scores: expected dtype float32, got float16"),
        ({"scores": torch.tensor([[0.0, 0, 0], [0, NAN, 0]])}, ValueError, r"scores: .*nan at index \[1, 1\]"),
        ({"depth": -1}, ValueError, "depth: expected an int >= 0, got -1"),
        ({"depth": 2}, ValueError, "depth: expected less than that of the trie, 2, got 2"),
        ({"depth": 1}, ValueError, r"nodes: expected -1 or nodes of depth 1 in \[1, 3\), got 0 at index \[0, 0\]"),
        ({"beam_width": 0}, ValueError, "beam_width: expected an int >= 1, got 0"),
        ({"beam_width": 2.0}, TypeError, "beam_width: expected an int"),
        ({"beam_width": True}, TypeError, "beam_width: expected an int"),
        ({"normalizer": "softmax"}, ValueError, "normalizer: expected one of 'vocab', 'trie', got 'softmax'"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a finite number > 0, got 0.0"),
        ({"temperature": INF}, ValueError, "temperature"),
        ({"temperature": NAN}, ValueError, "temperature"),
        ({"temperature": "1"}, TypeError, "temperature"),
        ({"bias": torch.zeros(V + 1)}, ValueError, r"bias: expected shape \[V\] = \[7\], got \[8\]"),
        ({"bias": torch.zeros(V).half()}, TypeError, "bias: .*float32, got float16"),
        ({"bias": torch.empty(V, device="meta")}, ValueError, "bias: expected device cpu"),
    ],
)
def test_bad_input_is_refused_by_name(changes, error, message):
    with pytest.raises(error, match=message):
        beam_step(**{**good(), **changes})


@given(
    catalogues,
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(1, 30),
    st.sampled_from(["vocab", "trie"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.data(),
)
def test_prompts_at_one_node_get_what_each_gets_among_others(
    items, seed, B, beam_width, normalizer, with_bias, ties, dtype, data
):
    # One beam a prompt and all at one node is the first step of a search; a dead beam beside it makes it any other.
    trie = ItemTrie.from_sequences([list(item) for item in items])
    hidden, weight, bias = tensors(seed, B, 1, dtype)
    weight = weight * 0 if ties else weight
    node = data.draw(st.integers(-1, trie.num_nodes - 1))
    nodes, scores = torch.full((B, 1), node), torch.linspace(-1, 0, B, dtype=torch.float32)[:, None]
    scores = scores.to(torch.float64) if dtype == torch.float64 else scores
    options = {"normalizer": normalizer, "bias": bias if with_bias else None}
    step = beam_step(hidden, weight, trie, nodes, scores, beam_width, **options)
    is_sound(step, trie, beam_width)
    dead = (torch.full_like(hidden, NAN), torch.full_like(nodes, -1), torch.full_like(scores, -INF))
    among = [torch.cat(pair, 1) for pair in zip((hidden, nodes, scores), dead, strict=True)]
    expected = beam_step(among[0], weight, trie, among[1], among[2], beam_width, **options)
    torch.testing.assert_close(step.scores, expected.scores)
    if ties or dtype == torch.float64:  # else two nearly equal scores may change places
        assert torch.equal(step.nodes, expected.nodes) and torch.equal(step.tokens, expected.tokens)
