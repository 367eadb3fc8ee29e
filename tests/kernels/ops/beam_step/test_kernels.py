"""beam_step in Triton against the reference op in fp64, on every path that a shape can take; ties exactly.

What holds for both implementations (refusals, steps that chain) is tested in test_beam_step.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tawin_kernels import BeamStep, ItemTrie, beam_step, reference
from tawin_kernels.launch import Target, recorded_launches
from tawin_kernels.ops.beam_step import selection as beam_selection
from tawin_kernels.ops.beam_step.selection import plan_selection

from ...brute_force import is_sound
from ...devices import DEVICE, KERNEL_DTYPES

beam_step_module = importlib.import_module("tawin_kernels.ops.beam_step")  # the package has the function by that name

V = 48
INF = math.inf

# fp32 sums of up to 130 products of size one, logits of up to size 40 divided by a temperature of at least 0.5, then
# exponentials and logarithms that are good to a few units of 2**-24 relative to those.
TOLERANCE = 6e-5

# How small shapes take the paths of large ones. "one launch" is how they go anyway.
PATHS = {
    "one launch": {},
    "columns": {"_LANES": 4},
    "lists of columns": {"_LANES": 2, "_KEYS_AT_ONCE": 64, "_KEYS_OF_A_PART": 32, "_BEAMS_AT_ONCE": 4},
    "lists": {"_KEYS_AT_ONCE": 32, "_KEYS_OF_A_PART": 8, "_BEAMS_AT_ONCE": 4},
    "gathered": {"_MAX_LOGITS": 0, "_GATHERED_AT_ONCE": 4},
    "gathered, a prompt at a time": {"_MAX_LOGITS": 0, "_GATHERED_AT_ONCE": 4, "_MAX_KEYS": 1},
}

deep = st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=1, max_size=12)
wide = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=1), min_size=20, max_size=60)
bushy = st.lists(st.lists(st.integers(0, 20), min_size=2, max_size=2), min_size=20, max_size=60)
# Items of any length, each with an end token that no item contains.
ragged = st.lists(
    st.lists(st.integers(0, 9), min_size=1, max_size=4).map(lambda item: [*item, V - 1]), min_size=1, max_size=20
)
catalogues = deep | wide | bushy | ragged | st.just([[3, 1, 4]])


@contextmanager
def path(name: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        for constant, value in PATHS[name].items():
            owner = beam_selection if hasattr(beam_selection, constant) else beam_step_module
            monkeypatch.setattr(owner, constant, value)
        yield


def tensors(B: int, W: int, H: int, dtype: torch.dtype = torch.float32, seed: int = 0, V: int = V):
    """hidden, weight, bias"""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((B, W, H), (V, H), (V,))
    return tuple((torch.randn(size, generator=generator) / max(1.0, H**0.25)).to(dtype).to(DEVICE) for size in sizes)


def beams(trie: ItemTrie, B: int, W: int, seed: int):
    """nodes and scores: the root, inner nodes, leaves and dead beams of both kinds."""
    generator = torch.Generator().manual_seed(seed)
    nodes = torch.randint(-1, trie.num_nodes, (B, W), generator=generator)
    nodes[torch.rand(B, W, generator=generator) < 0.4] = 0
    scores = -3 * torch.rand(B, W, generator=generator)
    scores[torch.rand(B, W, generator=generator) < 0.2] = -INF
    return nodes.to(DEVICE), scores.to(DEVICE)


def compare(step: BeamStep, hidden, weight, trie, nodes, scores, beam_width, *, bias=None, **options) -> None:
    """Scores are those of fp64; candidates are the best, where fp32 can tell them from others."""
    assert step.scores.dtype == torch.float32
    is_sound(step, trie, beam_width)
    B, W = nodes.shape
    exact = reference.beam_step(
        hidden.double(),
        weight.double(),
        trie,
        nodes,
        scores.double(),
        max(beam_width, W * trie.max_children),
        bias=None if bias is None else bias.double(),
        **options,
    )
    torch.testing.assert_close(step.scores.double(), exact.scores[:, :beam_width], atol=TOLERANCE, rtol=0)
    for b in range(B):
        known = {
            (parent, node): score
            for parent, node, score in zip(
                *(x[b].tolist() for x in (exact.parents, exact.nodes, exact.scores)), strict=True
            )
        }
        for parent, node, score in zip(*(x[b].tolist() for x in (step.parents, step.nodes, step.scores)), strict=True):
            if score > -INF:
                assert score == pytest.approx(known[parent, node], abs=TOLERANCE)


@settings(max_examples=24)
@given(
    items=catalogues,
    name=st.sampled_from(list(PATHS)),
    normalizer=st.sampled_from(["vocab", "trie"]),
    B=st.integers(1, 3),
    W=st.integers(1, 5),
    H=st.sampled_from([1, 24, 40, 130]),
    beam_width=st.integers(1, 40),
    dtype=st.sampled_from(KERNEL_DTYPES),
    temperature=st.sampled_from([1.0, 0.5, 3.0]),
    with_bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_step_is_that_of_the_reference_op_and_reads_no_beam_without_children(
    items, name, normalizer, B, W, H, beam_width, dtype, temperature, with_bias, seed
):
    trie = ItemTrie.from_sequences(items).to(DEVICE)
    hidden, weight, bias = tensors(B, W, H, dtype, seed)
    nodes, scores = beams(trie, B, W, seed)
    hidden[(nodes < 0) | (scores == -INF) | trie.is_leaf(nodes)] = math.nan
    options = {"normalizer": normalizer, "temperature": temperature, "bias": bias if with_bias else None}
    arguments = (hidden, weight, trie, nodes, scores, beam_width)
    with path(name):
        step = beam_step(*arguments, **options, impl="triton")
    compare(step, *arguments, **options)


@settings(max_examples=16)
@given(
    items=bushy | ragged,
    name=st.sampled_from(list(PATHS)),
    normalizer=st.sampled_from(["vocab", "trie"]),
    B=st.integers(1, 2),
    W=st.integers(1, 5),
    beam_width=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_ties_go_to_the_lower_parent_then_the_lower_edge(items, name, normalizer, B, W, beam_width, seed):
    # All tokens are equally likely, so scores tie wherever the beams' scores do; -0.0 ties with +0.0.
    trie = ItemTrie.from_sequences(items).to(DEVICE)
    nodes, _ = beams(trie, B, W, seed)
    levels = torch.tensor([0.0, -0.0, -1.0, -INF], device=DEVICE)
    scores = levels[torch.randint(0, 4, (B, W), generator=torch.Generator().manual_seed(seed)).to(DEVICE)]
    arguments = (
        torch.ones(B, W, 8, device=DEVICE),
        torch.zeros(V, 8, device=DEVICE),
        trie,
        nodes,
        scores,
        beam_width,
    )
    with path(name):
        step = beam_step(*arguments, normalizer=normalizer, impl="triton")
    expected = reference.beam_step(*arguments, normalizer=normalizer)
    for got, wanted in zip(step[1:], expected[1:], strict=True):
        assert torch.equal(got, wanted)
    torch.testing.assert_close(step.scores, expected.scores, atol=1e-6, rtol=0)  # fp32 near four


def test_scores_that_are_zero_of_either_sign_tie():
    # A single child under trie normalisation has log p 0, so that a candidate's score is its beam's.
    trie = ItemTrie.from_sequences([[5, 6]]).to(DEVICE)
    hidden, weight, _ = tensors(1, 4, 8)
    scores = torch.tensor([[-0.0, 0.0, -0.0, -1.0]], device=DEVICE)
    nodes = torch.zeros(1, 4, dtype=torch.int64, device=DEVICE)
    step = beam_step(hidden, weight, trie, nodes, scores, 4, normalizer="trie", impl="triton")
    assert step.parents.tolist() == [[0, 1, 2, 3]]
    assert step.scores.tolist() == [[0.0, 0.0, 0.0, -1.0]]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_candidates_at_minus_infinity_or_nan_are_missing(name, normalizer):
    trie = ItemTrie.from_sequences([[token] for token in range(12)]).to(DEVICE)
    hidden, weight, bias = tensors(1, 3, 24)
    bias[[1, 7, 11]] = -INF
    hidden[0, 1] = math.nan  # a live beam whose hidden state is NaN has only missing candidates
    arguments = (
        hidden,
        weight,
        trie,
        torch.tensor([[0, 0, -1]], device=DEVICE),
        torch.tensor([[-0.5, -0.1, 0.0]], device=DEVICE),
        20,
    )
    options = {"normalizer": normalizer, "bias": bias}
    with path(name):
        step = beam_step(*arguments, **options, impl="triton")
        assert sorted(step.tokens[0, :9].tolist()) == [0, 2, 3, 4, 5, 6, 8, 9, 10]
        assert step.tokens[0, 9:].tolist() == [-1] * 11
        compare(step, *arguments, **options)
        nothing = beam_step(*arguments, normalizer=normalizer, bias=torch.full_like(bias, -INF), impl="triton")
    assert bool((nothing.nodes == -1).all())
    is_sound(nothing, trie, 20)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(("B", "W"), [(0, 3), (3, 0), (2, 3)])
def test_no_live_beam_at_all_gives_only_missing_candidates(name, B, W):
    trie = ItemTrie.from_sequences([[0, 1], [2, 3]]).to(DEVICE)
    hidden, weight, _ = tensors(B, W, 8)
    nodes, scores = torch.full((B, W), -1, device=DEVICE), torch.zeros(B, W, device=DEVICE)
    for normalizer in ("vocab", "trie"):
        with path(name):
            step = beam_step(hidden * math.nan, weight, trie, nodes, scores, 5, normalizer=normalizer, impl="triton")
        is_sound(step, trie, 5)
        assert step.scores.shape == (B, 5)
        assert bool((step.scores == -INF).all())


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_a_root_of_very_many_children_is_shared_by_several_programs(monkeypatch, normalizer):
    children = 65_536 if DEVICE.type == "cuda" else 3_000
    monkeypatch.setattr(beam_selection, "_KEYS_AT_ONCE", 1024)
    trie = ItemTrie.from_sequences(torch.arange(children, device=DEVICE)[:, None])
    selection = plan_selection(1, 1, children, 4, 132, gathered=False)
    assert selection.splits > 1
    hidden, weight, _ = tensors(1, 1, 8, V=children)
    arguments = (hidden, weight, trie, torch.zeros(1, 1, dtype=torch.int64, device=DEVICE))
    arguments = (*arguments, torch.zeros(1, 1, device=DEVICE), 4)
    compare(beam_step(*arguments, normalizer=normalizer, impl="triton"), *arguments, normalizer=normalizer)


def test_a_beam_width_that_numpy_counted_is_one():
    trie = ItemTrie.from_sequences([[0], [1], [2]]).to(DEVICE)
    hidden, weight, _ = tensors(1, 1, 8)
    arguments = (hidden, weight, trie, torch.zeros(1, 1, dtype=torch.int64, device=DEVICE))
    arguments = (*arguments, torch.zeros(1, 1, device=DEVICE))
    step = beam_step(*arguments, np.int64(3), impl="triton")
    assert all(torch.equal(a, b) for a, b in zip(step, beam_step(*arguments, 3, impl="triton"), strict=True))


def test_the_widest_beam_that_the_kernels_take_gives_all_candidates():
    trie = ItemTrie.from_sequences([[a, b] for a in range(10) for b in range(3)]).to(DEVICE)
    hidden, weight, _ = tensors(1, 2, 8)
    arguments = (hidden, weight, trie, torch.tensor([[0, 1]], device=DEVICE), torch.zeros(1, 2, device=DEVICE), 512)
    step = beam_step(*arguments, normalizer="trie", impl="triton")
    compare(step, *arguments, normalizer="trie")
    assert int((step.nodes >= 0).sum()) == 10 + 3


@pytest.mark.parametrize("name", ["one launch", "gathered"])
@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_tensors_that_do_not_lie_in_memory_as_usual_are_read_right(name, normalizer):
    trie = ItemTrie.from_sequences([[a, a + b] for a in range(3) for b in range(5)]).to(DEVICE)
    hidden, weight, bias = tensors(2, 3, 24)
    nodes, scores = torch.tensor([[0, 1, 2], [3, 0, 0]], device=DEVICE), -torch.rand(2, 3, device=DEVICE)
    options = {"normalizer": normalizer, "impl": "triton"}
    with path(name):
        expected = beam_step(hidden, weight, trie, nodes, scores, 6, bias=bias, **options)
        others = (
            hidden.transpose(0, 2).contiguous().transpose(0, 2),
            torch.cat([hidden, hidden], 2)[:, :, 24:],
            torch.cat([hidden, hidden], 1)[:, :3],
        )
        for other in others:
            step = beam_step(
                other,
                weight.T.contiguous().T,
                trie,
                nodes.T.contiguous().T,
                scores.repeat_interleave(2, 1)[:, ::2],
                6,
                bias=bias.repeat_interleave(2)[::2],
                **options,
            )
            assert all(torch.equal(a, b) for a, b in zip(step, expected, strict=True))
        one_state = hidden[:, :1].expand(2, 3, 24)
        shared = beam_step(one_state, weight, trie, nodes, scores, 6, **options)
        copied = beam_step(one_state.contiguous(), weight, trie, nodes, scores, 6, **options)
    assert all(torch.equal(a, b) for a, b in zip(shared, copied, strict=True))


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_prompts_that_go_in_pieces_give_what_all_at_once_give(monkeypatch, normalizer):
    trie = ItemTrie.from_sequences([[a, b] for a in range(5) for b in range(a, 9)]).to(DEVICE)
    hidden, weight, bias = tensors(3, 4, 24)
    nodes, scores = beams(trie, 3, 4, 1)
    arguments = (hidden, weight, trie, nodes, scores, 7)
    whole = beam_step(*arguments, normalizer=normalizer, bias=bias, impl="triton")
    monkeypatch.setattr(beam_step_module, "_MAX_LOGITS", 2 * 4 * len(trie.used_tokens))  # two prompts, then one
    pieces = beam_step(*arguments, normalizer=normalizer, bias=bias, impl="triton")
    assert all(torch.equal(a, b) for a, b in zip(pieces, whole, strict=True))


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@pytest.mark.parametrize("W", [1, 2])
def test_prompts_at_a_wide_root_are_multiplied_in_pieces(monkeypatch, normalizer, W):
    trie = ItemTrie.from_sequences(torch.arange(200, device=DEVICE)[:, None])
    monkeypatch.setattr(beam_step_module, "_MANY_TOKENS", 100)
    monkeypatch.setattr(beam_step_module, "_MAX_LOGITS", 2 * W * 200)  # two prompts, then one
    hidden, weight, _ = tensors(3, W, 24, V=200)
    nodes = torch.zeros(3, W, dtype=torch.int64, device=DEVICE)
    arguments = (hidden, weight, trie, nodes, -torch.rand(3, W, device=DEVICE), 5)
    shapes = []

    def counted(*inputs):
        shapes.append(list((logits := token_logits(*inputs)).shape))
        return logits

    token_logits = beam_step_module.token_logits
    monkeypatch.setattr(beam_step_module, "token_logits", counted)
    compare(beam_step(*arguments, normalizer=normalizer, impl="triton"), *arguments, normalizer=normalizer)
    assert shapes == [[2 * W, 200], [W, 200]]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_step_at_a_known_depth_is_that_without_it_and_multiplies_what_follows_there(name, normalizer, depth):
    generator = torch.Generator().manual_seed(1)
    levels = [
        torch.randint(first, first + count, (40, 1), generator=generator) for first, count in ((0, 5), (5, 3), (8, 40))
    ]
    trie = ItemTrie.from_sequences(torch.cat(levels, 1)).to(DEVICE)
    hidden, weight, bias = tensors(2, 3, 16, seed=depth)
    first, end = trie.level_offsets[depth : depth + 2]
    nodes = torch.randint(first, end, (2, 3), generator=generator)
    nodes[1, 0] = -1
    nodes, scores = nodes.to(DEVICE), -torch.rand(2, 3, generator=generator).to(DEVICE)
    options = {"normalizer": normalizer, "bias": bias, "impl": "triton"}
    with path(name), pytest.MonkeyPatch.context() as monkeypatch:
        widths = []

        def counted(states, weight, bias, tokens, *rest):
            widths.append(len(tokens))
            return token_logits(states, weight, bias, tokens, *rest)

        token_logits = beam_step_module.token_logits
        monkeypatch.setattr(beam_step_module, "token_logits", counted)
        step = beam_step(hidden, weight, trie, nodes, scores, 4, depth=depth, **options)
        anywhere = beam_step(hidden, weight, trie, nodes, scores, 4, **options)
    compare(step, hidden, weight, trie, nodes, scores, 4, bias=bias, normalizer=normalizer)
    for field in ("tokens", "nodes", "parents"):
        assert torch.equal(getattr(step, field), getattr(anywhere, field))
    if widths:
        assert widths == [len(trie.levels[depth].tokens), len(trie.used_tokens)]


@pytest.mark.parametrize("name", PATHS)
def test_two_runs_give_the_same_bits_and_no_gradient(name):
    trie = ItemTrie.from_sequences([[a, b] for a in range(6) for b in range(10)]).to(DEVICE)
    hidden, weight, _ = tensors(2, 3, 40)
    nodes, scores = torch.tensor([[0, 1, 2], [3, 4, 0]], device=DEVICE), torch.zeros(2, 3, device=DEVICE)
    with path(name):
        runs = [
            beam_step(hidden.requires_grad_(), weight, trie, nodes, scores, 9, normalizer="trie", impl="triton")
            for _ in range(2)
        ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert not runs[0].scores.requires_grad


def test_what_the_kernels_do_not_take_is_refused_by_name_or_left_to_the_reference_op(monkeypatch):
    trie = ItemTrie.from_sequences([[0, 1], [2, 3]]).to(DEVICE)
    hidden, weight, _ = tensors(1, 2, 8)
    arguments = (hidden, weight, trie, torch.tensor([[0, 1]], device=DEVICE), torch.zeros(1, 2, device=DEVICE))
    with pytest.raises(ValueError, match=r"beam_width: expected at most 512 .*got 513; use impl='reference'"):
        beam_step(*arguments, 513, impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # "auto" means Triton on the CPU too
    expected = reference.beam_step(*arguments, 513)
    assert all(torch.equal(a, b) for a, b in zip(beam_step(*arguments, 513), expected, strict=True))
    monkeypatch.setattr(beam_step_module, "_MAX_PLACES", 3)
    with pytest.raises(ValueError, match=r"hidden: expected W \* children .* got 2 beams and 2 children"):
        beam_step(*arguments, 4, impl="triton")
    expected = reference.beam_step(*arguments, 4)
    assert all(torch.equal(a, b) for a, b in zip(beam_step(*arguments, 4), expected, strict=True))


@pytest.mark.parametrize(
    ("W", "children", "beam_width", "by_columns"),
    [
        (16, 256, 16, True),
        (1, 65_536, 16, True),
        (4, 256, 4, True),
        (16, 16, 16, False),
        (50, 256, 50, True),
        (512, 256, 512, False),
    ],
)
def test_columns_are_cut_first_where_that_leaves_less_to_sort(W, children, beam_width, by_columns):
    plan = plan_selection(64, W, children, beam_width, 132, gathered=False)
    assert plan.by_columns == by_columns
    if by_columns:
        assert beam_width <= plan.block_w * plan.lanes <= plan.block_w * plan.block_c // 2


@given(
    B=st.integers(1, 300),
    W=st.integers(1, 600),
    max_children=st.integers(1, 70_000),
    beam_width=st.integers(1, 512),
    gathered=st.booleans(),
)
def test_every_beam_and_child_has_a_program_and_no_program_holds_too_much(B, W, max_children, beam_width, gathered):
    plan = plan_selection(B, W, max_children, beam_width, 132, gathered=gathered)
    assert plan.block_w * plan.block_c <= 4096
    assert plan.groups * plan.block_w >= W
    assert plan.children >= max_children
    assert 512 >= plan.kept >= beam_width
    assert plan.splits == 1 or plan.block_w == 1
    assert plan.splits * plan.block_c <= max(plan.children, plan.block_c)


def meta_trie(children: int, tokens: int, V: int) -> ItemTrie:
    """A trie without memory: of 10**7 nodes in three levels, or of one level where the root has all tokens."""
    levels = (0, 1, children + 1) if children == tokens else (0, 1, children + 1, 10**6, 10**7)
    nodes = levels[-1]
    sizes = {"child_offsets": nodes + 1, "edge_tokens": nodes - 1, "item_offsets": nodes + 1, "item_ids": nodes}
    arrays = {name: torch.empty(size, dtype=torch.int32, device="meta") for name, size in sizes.items()}
    trie = ItemTrie(
        **arrays, level_offsets=levels, leaf_depths=(len(levels) - 2,), max_children=children, max_token=V - 1
    )
    # What `prepare` would make: it looks at tokens, of which there are none.
    vars(trie)["used_tokens"] = torch.empty(tokens, dtype=torch.int32, device="meta")
    vars(trie)["token_slots"] = torch.empty(V, dtype=torch.int32, device="meta")
    return trie


@pytest.mark.parametrize(
    ("B", "W", "children", "tokens", "normalizer", "launches"),
    [
        (256, 16, 256, 1024, "vocab", 5),
        (256, 16, 256, 1024, "trie", 3),
        (256, 16, 5000, 20_000, "vocab", 5),  # gathered; one more that merges, one less for the logits
        (256, 16, 5000, 20_000, "trie", 4),
        (1, 1, 65_536, 70_000, "trie", 5),
        (256, 256, 256, 1024, "trie", 4 * 5),  # four pieces of 64 prompts, each with two merges
        (256, 256, 256, 1024, "vocab", 1 + 2 + 4 * 5),  # the statistics of the vocabulary once, for all of them
    ],
)
def test_a_step_launches_what_its_shapes_say_and_asks_the_device_nothing(B, W, children, tokens, normalizer, launches):
    trie = meta_trie(children, tokens, 151_936)
    with recorded_launches(Target("cuda", "90")) as recorded:
        step = beam_step_module.triton_beam_step(
            torch.zeros(B, W, 896, dtype=torch.bfloat16, device="meta"),
            torch.zeros(151_936, 896, dtype=torch.bfloat16, device="meta"),
            None,
            trie,
            torch.zeros(B, W, dtype=torch.int64, device="meta"),
            torch.zeros(B, W, device="meta"),
            W,
            normalizer,
            1.0,
            None,
        )
    assert step.nodes.shape == (B, W)
    assert len(recorded) == launches
    for each in recorded:
        logits = each.arguments.get("logits_ptr")
        assert logits is None or logits.nbytes <= 2**26


@pytest.mark.parametrize(
    ("B", "W", "children", "tokens", "gathers"),
    [
        (257, 1, 65_536, 65_536, False),
        (512, 1, 40_000, 40_000, False),
        (256, 1, 150_000, 150_000, False),
        (64, 16, 150_000, 150_000, False),  # of one level: all beams stand at the root
        (4096, 1, 5000, 20_000, False),
        (256, 16, 5000, 20_000, True),  # below a wide root, a node has ten children
        (256, 16, 256, 1024, False),
        (64, 512, 40_000, 40_000, True),  # not even one prompt's logits are allowed
    ],
)
def test_a_wide_root_is_multiplied_and_few_children_of_many_tokens_are_gathered(B, W, children, tokens, gathers):
    weight = torch.empty(151_936, 896, dtype=torch.bfloat16, device="meta")
    assert beam_step_module._is_gathered(B, W, meta_trie(children, tokens, 151_936), None, weight) is gathers


@pytest.mark.skipif(DEVICE.type != "cuda", reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_a_step_is_captured_in_a_cuda_graph(normalizer):
    trie = ItemTrie.from_sequences([[a, b] for a in range(20) for b in range(a, 40)]).to(DEVICE)
    trie.prepare()
    hidden, weight, _ = tensors(2, 4, 64)
    nodes, scores = beams(trie, 2, 4, 0)
    arguments = (hidden, weight, trie, nodes, scores, 8)
    beam_step(*arguments, normalizer=normalizer)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = beam_step(*arguments, normalizer=normalizer)
    hidden.copy_(tensors(2, 4, 64, seed=5)[0])
    scores.copy_(beams(trie, 2, 4, 5)[1])
    graph.replay()
    expected = beam_step(*arguments, normalizer=normalizer)
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
