"""Beam search against transformers' generate and against exhaustive search; sampled and random sequences."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tawin_kernels import ItemTrie
from tawin_kernels.ops.log_prob import lm_head
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tawin.search import completions as rollout
from tawin.search.completions import (
    Normalizer,
    _without_replacement,
    beam_search,
    beam_sequences,
    expand_items,
    prefix_nodes,
    random_sequences,
    sample_sequences,
    score_sequences,
    sequence_log_probs,
)
from tawin.search.decode import decode

from ..models import FAMILIES, exhaustive, ragged_prompts, random_items, tiny_model

# fp32 log-probs summed over a few tokens; generate pads and batches differently, so the last digits differ.
TOLERANCE = 2e-4


def generate_best(
    model: nn.Module, input_ids: Tensor, mask: Tensor, items: list[list[int]], width: int, end: int, penalty: float
) -> list[list[tuple[tuple[int, ...], float]]]:
    """What transformers' beam search finds under the same constraint: a list of (item tokens, score) a prompt."""
    children: dict[tuple[int, ...], set[int]] = {}
    for item in items:
        whole = (*item, end)
        for i in range(len(whole)):
            children.setdefault(whole[:i], set()).add(whole[i])
    start = input_ids.shape[1]

    def allowed(_: int, row: Tensor) -> list[int]:
        return sorted(children.get(tuple(row[start:].tolist()), {0}))

    found = model.generate(
        input_ids=input_ids,
        attention_mask=mask,
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=max(map(len, items)) + 1,
        do_sample=False,
        length_penalty=penalty,
        eos_token_id=end,
        pad_token_id=0,
        prefix_allowed_tokens_fn=allowed,
        output_scores=True,
        return_dict_in_generate=True,
    )
    results: list[list[tuple[tuple[int, ...], float]]] = []
    rows = zip(found.sequences[:, start:].tolist(), found.sequences_scores.tolist(), strict=True)
    for row, (tokens, score) in enumerate(rows):
        if row % width == 0:
            results.append([])
        if end in tokens and score > -1e8:
            results[-1].append((tuple(tokens[: tokens.index(end)]), score))
    return results


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("width", [2, 4, 7])
def test_beam_search_returns_what_generate_returns(family: str, penalty: float, width: int) -> None:
    model = tiny_model(family, seed=width)
    items = random_items(60, (1, 5), seed=width)
    trie = ItemTrie.from_sequences(items, end_token=2)
    input_ids, mask = ragged_prompts(5, 6, seed=width)
    found = beam_search(model, input_ids, mask, trie, width, length_penalty=penalty)
    expected = generate_best(model, input_ids, mask, items, width, 2, penalty)
    for row, wanted in enumerate(expected):
        got = [
            (tuple(items[item]), score)
            for item, score in zip(found.item_ids[row].tolist(), found.scores[row].tolist(), strict=True)
            if item >= 0
        ]
        assert [tokens for tokens, _ in got] == [tokens for tokens, _ in wanted]
        assert [score for _, score in got] == pytest.approx([score for _, score in wanted], abs=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_beam_wider_than_the_catalogue_finds_every_item_in_order(family: str) -> None:
    model = tiny_model(family, seed=3)
    items = [[3, 4, 5], [3, 4, 6], [3, 7], [8], [9, 10, 11, 12], [9, 10, 11, 13], [14, 15]]
    trie = ItemTrie.from_sequences(items)
    input_ids, mask = ragged_prompts(4, 7, seed=1)
    found = beam_search(model, input_ids, mask, trie, 10)
    expected = exhaustive(model, input_ids, mask, items)
    order = expected.argsort(dim=1, descending=True)
    assert torch.equal(found.item_ids[:, : len(items)], order)
    torch.testing.assert_close(found.scores[:, : len(items)], expected.gather(1, order), atol=TOLERANCE, rtol=0)
    assert (found.item_ids[:, len(items) :] == -1).all()
    assert (found.scores[:, len(items) :] == -torch.inf).all()
    assert (found.token_ids[:, len(items) :] == -100).all()
    assert not found.mask[:, len(items) :].any()


@torch.no_grad()
def test_scores_renormalised_over_the_trie_sum_to_one() -> None:
    model = tiny_model("qwen2", seed=5)
    items = random_items(30, (3, 3), seed=5)
    input_ids, mask = ragged_prompts(3, 5)
    found = beam_search(model, input_ids, mask, ItemTrie.from_sequences(items), 30, normalizer="trie")
    torch.testing.assert_close(found.scores.exp().sum(1), torch.ones(3), atol=1e-4, rtol=0)


def test_items_that_share_a_sequence_stand_together_in_item_order_with_one_score() -> None:
    model = tiny_model("llama", seed=2)
    items = [[5, 6], [7, 8], [5, 6], [9, 9], [7, 8], [5, 6]]
    trie = ItemTrie.from_sequences(items)
    input_ids, mask = ragged_prompts(3, 4)
    found = beam_search(model, input_ids, mask, trie, 4)
    for row in range(3):
        seen = found.item_ids[row].tolist()
        groups = [[0, 2, 5], [1, 4], [3]]
        expected = list(
            itertools.chain.from_iterable(sorted(groups, key=lambda g: seen.index(g[0]) if g[0] in seen else 9))
        )
        assert seen == expected[:4]
        for item, tokens in zip(seen, found.token_ids[row].tolist(), strict=True):
            assert tokens == items[item]


def test_no_more_beams_are_run_than_the_catalogue_has_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    model, widths = tiny_model("qwen2"), []
    trie = ItemTrie.from_sequences([[5, 6], [7, 8, 9], [5, 6], [9, 9]])  # 3 sequences
    input_ids, mask = ragged_prompts(2, 4)
    expected = beam_search(model, input_ids, mask, trie, 4)

    def watched(*arguments: Any, **options: Any) -> Any:
        widths.append(arguments[2].beam_width)
        return decode(*arguments, **options)

    monkeypatch.setattr(rollout, "decode", watched)
    found = beam_search(model, input_ids, mask, trie, 100_000)
    assert widths == [3] and found.token_ids.shape == (2, 100_000, 3)
    assert torch.equal(found.item_ids[:, :4], expected.item_ids) and (found.item_ids[:, 4:] == -1).all()
    assert torch.equal(found.scores[:, :4], expected.scores) and torch.isneginf(found.scores[:, 4:]).all()
    assert beam_sequences(model, input_ids, mask, trie, 50).nodes.shape == (2, 50)


def test_a_training_group_holds_distinct_sequences() -> None:
    model = tiny_model("qwen2")
    trie = ItemTrie.from_sequences([[5, 6], [7, 8], [5, 6], [9, 9]])
    input_ids, mask = ragged_prompts(2, 4)
    group = beam_sequences(model, input_ids, mask, trie, 4)
    assert (group.nodes[:, :3] >= 0).all() and (group.nodes[:, 3] == -1).all()
    for row in group.nodes[:, :3].tolist():
        assert len(set(row)) == 3


@torch.no_grad()
def test_left_padding_changes_nothing() -> None:
    model = tiny_model("gemma3", seed=4)
    trie = ItemTrie.from_sequences(random_items(40, (3, 3), seed=4))
    input_ids, mask = ragged_prompts(1, 6)
    wide = torch.cat((torch.full((1, 5), 9), input_ids), dim=1)
    wide_mask = torch.cat((torch.zeros(1, 5, dtype=torch.int64), mask), dim=1)
    narrow, padded = beam_search(model, input_ids, mask, trie, 8), beam_search(model, wide, wide_mask, trie, 8)
    assert torch.equal(narrow.item_ids, padded.item_ids)
    torch.testing.assert_close(narrow.scores, padded.scores, atol=TOLERANCE, rtol=0)


def test_eager_attention_finds_what_sdpa_finds() -> None:
    trie = ItemTrie.from_sequences(random_items(40, (2, 4), seed=6), end_token=2)
    input_ids, mask = ragged_prompts(3, 6)
    sdpa = beam_search(tiny_model("qwen3", seed=6), input_ids, mask, trie, 6)
    eager = beam_search(tiny_model("qwen3", seed=6, attention="eager"), input_ids, mask, trie, 6)
    assert torch.equal(sdpa.item_ids, eager.item_ids)
    torch.testing.assert_close(sdpa.scores, eager.scores, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@torch.no_grad()
def test_beam_scores_are_the_policys_own_log_probs(normalizer: Normalizer) -> None:
    model = tiny_model("gemma3", seed=7)
    trie = ItemTrie.from_sequences(random_items(40, (2, 4), seed=7), end_token=2)
    input_ids, mask = ragged_prompts(4, 6)
    group = beam_sequences(model, input_ids, mask, trie, 6, normalizer=normalizer)
    over = {"normalizer": normalizer, "trie": trie if normalizer == "trie" else None}
    scores = score_sequences(model, input_ids, mask, group.token_ids, **over)
    torch.testing.assert_close(group.scores, scores, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_sampled_sequences_are_items_with_their_own_log_probs_and_follow_the_policy() -> None:
    model = tiny_model("qwen2", seed=8)
    items = [[5, 6], [5, 7], [8, 9, 10], [8, 9, 11], [12]]
    trie = ItemTrie.from_sequences(items)
    input_ids, mask = ragged_prompts(2, 5)
    drawn = sample_sequences(model, input_ids, mask, trie, 4000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        drawn.scores[:, :50], score_sequences(model, input_ids, mask, drawn.token_ids[:, :50]), atol=TOLERANCE, rtol=0
    )
    exact = beam_search(model, input_ids, mask, trie, len(items), normalizer="trie")
    for row in range(2):
        share = {node: (drawn.nodes[row] == node).float().mean() for node in trie.leaf_of_item.tolist()}
        for item, score in zip(exact.item_ids[row].tolist(), exact.scores[row].tolist(), strict=True):
            # Four standard deviations of a share of 4,000 draws are at most 4 * 0.5 / sqrt(4000) = 0.032.
            assert float(share[int(trie.leaf_of_item[item])]) == pytest.approx(
                float(torch.tensor(score).exp()), abs=0.032
            )


@torch.no_grad()
def test_sampled_sequences_are_scored_over_the_trie_where_that_is_asked_for() -> None:
    model = tiny_model("qwen2", seed=8)
    trie = ItemTrie.from_sequences([[5, 6], [5, 7], [8, 9, 10], [8, 9, 11], [12]])
    input_ids, mask = ragged_prompts(2, 5)
    drawn = [
        sample_sequences(model, input_ids, mask, trie, 50, normalizer=n, generator=torch.Generator().manual_seed(0))
        for n in ("vocab", "trie")
    ]
    assert torch.equal(drawn[0].nodes, drawn[1].nodes)
    scores = score_sequences(model, input_ids, mask, drawn[1].token_ids, normalizer="trie", trie=trie)
    torch.testing.assert_close(drawn[1].scores, scores, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_sampling_holds_the_logits_of_the_vocabulary_of_few_states_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("qwen2", seed=8)
    V = model.config.vocab_size
    monkeypatch.setattr(lm_head, "MAX_LOGITS", V)
    shapes = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **kwargs or {})
            if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default) and V in result.shape:
                shapes.append(result.shape)
            return result

    trie = ItemTrie.from_sequences([[5, 6], [5, 7], [8, 9], [8, 11], [12, 3], [12, 4]])
    with Products():
        sample_sequences(model, *ragged_prompts(2, 5), trie, 50, generator=torch.Generator().manual_seed(0))
    # Not 100 states of 50 sequences. Two prompts' tokens go through layers that happen to be as wide.
    assert shapes and max(shape[0] for shape in shapes) <= 4


def test_prefix_nodes_walk_down_the_trie() -> None:
    items = random_items(60, (1, 4), seed=9)
    trie = ItemTrie.from_sequences(items, end_token=2)
    rows = [[*item, 2] for item in items]
    tokens = torch.tensor([row + [-100] * (trie.max_depth - len(row)) for row in rows])
    nodes = prefix_nodes(trie, tokens.view(6, 10, -1))
    assert nodes.shape == (6, 10, trie.max_depth) and nodes.dtype == torch.int64
    for row, leaf, path in zip(rows, trie.leaf_of_item.tolist(), nodes.flatten(0, 1).tolist(), strict=True):
        assert path[0] == 0
        for token, before, after in zip(row, path, [*path[1 : len(row)], leaf], strict=False):
            assert int(trie.edge_tokens[after - 1]) == token
            assert int(trie.child_offsets[before]) <= after - 1 < int(trie.child_offsets[before + 1])
    assert prefix_nodes(trie, torch.tensor([[1, 1, 3]])).tolist() == [[0, -1, -1]]


@torch.no_grad()
def test_log_probs_over_the_trie_are_those_of_a_softmax_over_the_children() -> None:
    model = tiny_model("qwen2", seed=3)
    trie = ItemTrie.from_sequences([[5, 6], [5, 7], [8, 9], [4, 4]])
    input_ids, mask = ragged_prompts(2, 5)
    token_ids = torch.tensor([[[5, 7], [8, 9]], [[4, 4], [5, 6]]])
    over_all = sequence_log_probs(model, input_ids, mask, token_ids)
    over_trie = sequence_log_probs(model, input_ids, mask, token_ids, normalizer="trie", trie=trie)
    assert over_trie[0, 1, 1] == 0.0 and over_trie[1, 0, 1] == 0.0  # an only child
    siblings = torch.tensor([[[5, 7], [5, 6], [8, 9], [4, 4]]]).expand(2, -1, -1)
    log_probs = sequence_log_probs(model, input_ids, mask, siblings)  # [2, 4, 2]
    first = log_probs[:, 1:, 0].logsumexp(1)  # of the root's children 5, 8 and 4
    second = log_probs[:, :2, 1].logsumexp(1)  # of the children of 5
    torch.testing.assert_close(over_trie[..., 0], over_all[..., 0] - first[:, None], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(over_trie[0, 0, 1], over_all[0, 0, 1] - second[0], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(over_trie[1, 1, 1], over_all[1, 1, 1] - second[1], atol=TOLERANCE, rtol=0)


def test_random_sequences_are_distinct_and_uniform() -> None:
    items = torch.tensor([[5, 6, -1], [5, 7, -1], [8, 9, 10], [5, 6, -1]])
    trie = ItemTrie.from_sequences(items, lengths=torch.tensor([2, 2, 3, 2]))
    drawn = random_sequences(trie, items, 3000, 2, generator=torch.Generator().manual_seed(0))
    assert (drawn.nodes[:, 0] != drawn.nodes[:, 1]).all()
    for node in trie.leaf_of_item.unique().tolist():
        assert float((drawn.nodes == node).any(1).float().mean()) == pytest.approx(2 / 3, abs=0.04)
    for node, tokens in zip(
        drawn.nodes[:20].flatten().tolist(), drawn.token_ids[:20].flatten(0, 1).tolist(), strict=True
    ):
        item = int(trie.items_at(node)[0])
        assert [t for t in tokens if t >= 0] == [t for t in items[item].tolist() if t >= 0]
    few = random_sequences(trie, items, 2, 5)
    assert (few.nodes[:, 3:] == -1).all() and (few.token_ids[:, 3:] == -100).all()


@given(st.integers(1, 12), st.data())
def test_drawing_without_replacement_is_the_start_of_a_shuffle(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    numbers = st.lists(st.floats(0, 1, exclude_max=True), min_size=count, max_size=count)
    uniforms = [data.draw(numbers) for _ in range(2)]
    expected = []
    for row in uniforms:
        order = list(range(total))
        for index, number in enumerate(row):
            place = index + int(number * (total - index))
            order[index], order[place] = order[place], order[index]
        expected.append(order[:count])
    drawn = _without_replacement(torch.tensor(uniforms, dtype=torch.float64), total)
    assert drawn.tolist() == expected


def test_expanding_cuts_to_the_beam_width() -> None:
    items = [[5], [5], [5], [6]]
    trie = ItemTrie.from_sequences(items)
    group = beam_sequences(tiny_model("qwen2"), *ragged_prompts(1, 3), trie, 2)
    assert expand_items(group, trie).item_ids.shape == (1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beam_width": 0}, "beam_width"),
        ({"beam_width": 2.0}, "beam_width"),
        ({"input_ids": torch.zeros(2, 3)}, "input_ids"),
        ({"attention_mask": torch.ones(2, 4)}, "attention_mask"),
        ({"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}, "left-padded"),
        ({"attention_mask": torch.tensor([[1, 0, 1], [1, 1, 1]])}, "hole"),
        ({"normalizer": "items"}, "normalizer"),
    ],
)
def test_bad_arguments_are_refused_by_name(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "model": tiny_model("qwen2"),
        "input_ids": torch.full((2, 3), 5),
        "attention_mask": torch.ones(2, 3, dtype=torch.int64),
        "trie": ItemTrie.from_sequences([[5], [6]]),
        "beam_width": 2,
        **change,
    }
    with pytest.raises((ValueError, TypeError), match=message):
        beam_search(**arguments)  # type: ignore[arg-type]


def test_models_that_would_be_wrong_are_refused_by_name() -> None:
    trie = ItemTrie.from_sequences([[5], [6]])
    prompts = ragged_prompts(1, 3)
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        beam_search(tiny_model("gemma2", attention="eager"), *prompts, trie, 2)


def test_a_model_that_gives_nan_finds_nothing() -> None:
    model = tiny_model("qwen2")
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    found = beam_search(model, *ragged_prompts(2, 3), ItemTrie.from_sequences([[5, 6], [7, 8]]), 3)
    assert (found.item_ids == -1).all() and (found.scores == -torch.inf).all()
