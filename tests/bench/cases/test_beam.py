"""The inputs of the beam benchmarks are what their docstrings say, and their checks can tell a wrong answer."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tawin_kernels import BeamStep, ItemTrie, beam_step

from bench.cases.beam import (
    GPU_SHAPES,
    StepInputs,
    StepShape,
    catalogue,
    compare_steps,
    draw_items,
    make_inputs,
    work_of,
)
from bench.cases.floors import LAUNCH_SECONDS
from bench.cases.ratios import PolicyShape, beam_search_case

TINY = StepShape(prompts=3, beams=5, beam_width=4, items=60, hidden_size=8, text_tokens=10, dtype=torch.float32)


@pytest.mark.parametrize(("count", "codes"), [(1000, 256), (200, 4), (256, 4)])
def test_drawn_items_are_distinct_and_the_same_every_time(count: int, codes: int) -> None:
    items = draw_items(count, codes)
    assert items.shape == (count, 4) and items.min() >= 0 and items.max() < codes
    assert len(np.unique(items, axis=0)) == count
    assert np.array_equal(items, draw_items(count, codes))


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_beams_stand_on_distinct_nodes_of_their_depth(depth: int) -> None:
    trie = catalogue(TINY.items, TINY.text_tokens)
    nodes = make_inputs(replace(TINY, depth=depth), trie).nodes
    live = nodes[nodes >= 0]
    assert bool(((live >= trie.level_offsets[depth]) & (live < trie.level_offsets[depth + 1])).all())
    for row in nodes:
        assert len(row[row >= 0].unique()) == min(5, trie.level_offsets[depth + 1] - trie.level_offsets[depth])


def test_the_inputs_of_a_shape_are_taken_by_the_op() -> None:
    trie = catalogue(TINY.items, TINY.text_tokens)
    inputs = make_inputs(TINY, trie)
    step = beam_step(inputs.hidden, inputs.lm_head_weight, trie, inputs.nodes, inputs.scores, TINY.beam_width)
    assert bool((step.nodes > 0).all())


def test_the_work_of_a_step_is_counted_as_by_hand() -> None:
    # Root with children 1 and 2, which have the leaves 3, 4 and 5: nodes 1 and 2 of 2 and 1 children.
    trie = ItemTrie.from_sequences([[1, 3], [1, 4], [2, 5]])
    shape = StepShape(prompts=1, beams=3, beam_width=2, hidden_size=8, text_tokens=2, dtype=torch.bfloat16)
    hidden = torch.zeros(1, 3, 8, dtype=torch.bfloat16)
    weight = torch.zeros(shape.vocabulary, 8, dtype=torch.bfloat16)
    inputs = StepInputs(hidden, weight, torch.tensor([[1, 2, -1]]), torch.zeros(1, 3))
    # Two live states, 3 edges and 2 pairs of offsets in int32, nodes and scores of 3 beams, two results.
    beside_the_head = 2 * 8 * 2 + 3 * 4 + 2 * 2 * 4 + 3 * 8 + 3 * 4 + 2 * (4 + 3 * 8)
    vocab = work_of(shape, trie, inputs)
    assert (vocab.candidates, vocab.flops) == (3, 2 * 2 * shape.vocabulary * 8)
    assert vocab.bytes == shape.vocabulary * 8 * 2 + beside_the_head
    trie_only = work_of(replace(shape, normalizer="trie"), trie, inputs)
    assert (trie_only.candidates, trie_only.flops) == (3, 2 * 3 * 8)
    assert trie_only.bytes == 3 * 8 * 2 + beside_the_head
    assert trie_only.floor_seconds > LAUNCH_SECONDS


def test_every_axis_is_swept_from_the_base() -> None:
    swept = {
        name: {axis for axis in vars(shape) if vars(shape)[axis] != vars(GPU_SHAPES[base])[axis]}
        for base in ("base", "trie")
        for name, shape in GPU_SHAPES.items()
        if shape.normalizer == GPU_SHAPES[base].normalizer
    }
    allowed = [{axis} for axis in ("prompts", "items", "hidden_size", "text_tokens", "depth")]
    allowed += [set(), {"beams", "beam_width"}, {"beams", "depth"}]  # the root is one beam
    assert all(axes in allowed for axes in swept.values()), swept


def test_a_search_in_bf16_is_compared_in_fp32() -> None:
    shape = PolicyShape(text_tokens=40, hidden_size=16, layers=2, heads=2, intermediate_size=24, key_value_heads=1)
    case = beam_search_case(
        prompts=2,
        prompt_length=6,
        beam_width=4,
        model_shape=shape,
        dtype=torch.bfloat16,
        catalogue=("drawn", draw_items(50)),
        goal=50.0,
    )
    assert "items the same" in case.check()
    assert case.goal == 50.0 and "50 items (drawn)" in case.shape
    case.ours()


def test_steps_may_differ_by_ties_and_by_nothing_else() -> None:
    def step(scores: list[float], nodes: list[int]) -> BeamStep:
        as_tensor = torch.tensor([nodes])
        return BeamStep(torch.tensor([scores]), as_tensor + 10, as_tensor, torch.zeros_like(as_tensor))

    ours = step([-1.0, -2.0, -3.0], [1, 2, 3])
    compare_steps(ours, step([-1.0, -2.0, -3.0], [1, 2, 4]), tolerance=1e-3)  # the last place may tie with an outsider
    compare_steps(step([-1.0, -1.0, -3.0], [1, 2, 3]), step([-1.0, -1.0, -3.0], [2, 1, 3]), tolerance=1e-3)
    with pytest.raises(AssertionError, match="scores differ"):
        compare_steps(ours, step([-1.0, -2.0, -3.1], [1, 2, 3]), tolerance=1e-3)
    with pytest.raises(AssertionError, match="choices differ"):
        compare_steps(ours, step([-1.0, -2.0, -3.0], [1, 4, 3]), tolerance=1e-3)
    with pytest.raises(AssertionError, match="as many"):
        compare_steps(ours, step([-1.0, -2.0, -math.inf], [1, 2, -1]), tolerance=1e-3)
