"""Every item's exact score against separate forwards and against beam search; exact ranks and their metrics."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tawin_kernels import ItemTrie
from torch import Tensor, nn

from tawin import metrics
from tawin.catalog.catalog import Catalog
from tawin.config import EvaluationConfig
from tawin.data.dataset import Examples
from tawin.data.ragged import Ragged
from tawin.evaluate.exact import exact_metrics, exact_ranks, full_metrics, score_catalog
from tawin.evaluate.ranking import evaluate
from tawin.model.backbone import backbone
from tawin.model.packing import packs
from tawin.search.completions import beam_search, score_sequences

from ..models import FAMILIES, exhaustive, ragged_prompts, random_items, tiny_model

# fp32 log-probs summed over a few tokens, in another order.
TOLERANCE = {"atol": 2e-4, "rtol": 0}


def items_of(kind: str) -> list[list[int]]:
    """Catalogues of ids of three or four tokens, and of titles of varied length, each with an item twice."""
    items = {
        "three": lambda: random_items(60, (3, 3), seed=1),
        "four": lambda: random_items(40, (4, 4), seed=2),
        "titles": lambda: [[*item, 2] for item in random_items(40, (1, 9), seed=3)],
    }[kind]()
    return [*items, items[7]]


def catalog_of(items: list[list[int]]) -> Catalog:
    lengths = torch.tensor([len(item) for item in items])
    tokens = torch.full((len(items), int(lengths.max())), -1)
    for row, item in enumerate(items):
        tokens[row, : len(item)] = torch.tensor(item)
    trie = ItemTrie.from_sequences(tokens, lengths=lengths)
    return Catalog(np.arange(len(items)), None, None, tokens, trie, trie.leaf_of_item, (1,), 0, None)


def examples_of(users: int, catalog: Catalog, *, also: Ragged | None = None) -> Examples:
    random = np.random.default_rng(0)
    histories = [random.integers(0, catalog.num_items, random.integers(0, 5)) for _ in range(users)]
    return Examples(np.arange(users), histories, random.integers(0, catalog.num_items, users), also)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["three", "four", "titles"])
@torch.no_grad()
def test_every_item_has_the_score_that_a_forward_of_its_own_gives(family: str, kind: str) -> None:
    model, items = tiny_model(family, seed=1), items_of(kind)
    input_ids, mask = ragged_prompts(3, 7)
    expected = exhaustive(model, input_ids, mask, items)
    for chunk in (1, 5, 1000):  # chunks that cut subtrees anywhere, and one for all
        found = score_catalog(model, input_ids, mask, ItemTrie.from_sequences(items), chunk=chunk)
        assert found.dtype == torch.float32 and found.shape == (3, len(items))
        torch.testing.assert_close(found, expected, **TOLERANCE)
        assert torch.equal(found[:, -1], found[:, 7])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
@torch.no_grad()
def test_scores_in_fp64_are_those_of_separate_forwards(family: str, attention: str) -> None:
    model, items = tiny_model(family, attention=attention).double(), items_of("titles")
    input_ids, mask = ragged_prompts(2, 5)
    found = score_catalog(model, input_ids, mask, catalog_of(items), chunk=7)
    assert found.dtype == torch.float64
    # The norms of these decoders are fp32 even in an fp64 model, and what is compared with is rounded to fp32.
    torch.testing.assert_close(found, exhaustive(model, input_ids, mask, items).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["three", "four", "titles"])
def test_over_the_trie_scores_are_those_of_score_sequences_and_their_probabilities_sum_to_one(kind: str) -> None:
    model, catalog = tiny_model("qwen2", seed=2), catalog_of(items_of(kind))
    input_ids, mask = ragged_prompts(3, 6)
    found = score_catalog(model, input_ids, mask, catalog, normalizer="trie", chunk=6)
    tokens = catalog.token_ids.masked_fill(catalog.token_ids < 0, -100).expand(3, -1, -1)
    expected = score_sequences(model, input_ids, mask, tokens, normalizer="trie", trie=catalog.trie)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    torch.testing.assert_close(found[:, :-1].exp().sum(1), torch.ones(3), atol=1e-4, rtol=0)  # each sequence once


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
@pytest.mark.parametrize("kind", ["three", "titles"])
def test_the_order_is_that_of_a_beam_search_with_a_beam_an_item(family: str, normalizer: str, kind: str) -> None:
    model, catalog = tiny_model(family, seed=4), catalog_of(items_of(kind))
    input_ids, mask = ragged_prompts(3, 6)
    found = score_catalog(model, input_ids, mask, catalog, normalizer=normalizer, chunk=11)
    best = beam_search(model, input_ids, mask, catalog.trie, catalog.num_items, normalizer=normalizer)
    assert torch.equal(found.argsort(dim=1, descending=True, stable=True), best.item_ids)
    torch.testing.assert_close(found.gather(1, best.item_ids), best.scores, **TOLERANCE)


def test_over_the_trie_only_nodes_above_a_choice_are_run() -> None:
    model, trie = tiny_model("qwen2"), catalog_of(items_of("titles")).trie
    input_ids, mask = ragged_prompts(3, 6)
    packs(backbone(model))  # has tried the model before what is counted
    seen: list[int] = []
    model.model.layers[0].mlp.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[1]))
    score_catalog(model, input_ids, mask, trie, normalizer="trie")
    nodes = torch.arange(1, trie.num_nodes)
    above_a_choice = int(trie.has_choice(trie.chain_ends[nodes]).sum())
    assert 0 < above_a_choice < int((~trie.is_leaf(nodes)).sum())
    assert seen == [int(mask.sum()), 3 * above_a_choice]


def test_a_prompt_is_run_once_and_a_node_hardly_more_in_forwards_that_the_chunk_bounds() -> None:
    model, items = tiny_model("qwen2"), random_items(200, (4, 4), seed=5)
    input_ids, mask = ragged_prompts(3, 6)
    packs(backbone(model))  # has tried the model before what is counted
    seen: list[int] = []
    model.model.layers[0].mlp.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[1]))
    score_catalog(model, input_ids, mask, ItemTrie.from_sequences(items), chunk=16)
    inner = len({tuple(item[:end]) for item in items for end in (1, 2, 3)})
    prompts, *chunks = seen
    assert prompts == int(mask.sum())
    assert max(chunks) <= 3 * (16 + 2)  # a node of depth 3 has two ancestors that are not the root
    assert len(chunks) == -(-inner // 16)
    assert 3 * inner <= sum(chunks) <= 3 * (inner + 2 * len(chunks))


@pytest.mark.parametrize("kind", ["three", "titles"])
def test_exact_ranks_are_places_in_the_sorted_scores_with_ties_in_item_order(kind: str) -> None:
    model, catalog = tiny_model("qwen2", seed=6, attention_dropout=0.5), catalog_of(items_of(kind))
    examples = examples_of(9, catalog)
    last = catalog.num_items - 1  # has the sequence of item 7
    examples = Examples(examples.user_ids, examples.histories, np.array([7, last, *examples.targets[2:]]))
    model.train()
    found = exact_ranks(model, catalog, examples, batch_size=4, chunk=10)
    assert model.training
    model.eval()
    assert found.ranks.shape == (9, 1) and found.ranks.dtype == np.int64
    for row, (history, target) in enumerate(zip(examples.histories, examples.targets, strict=True)):
        scores = score_catalog(model, *catalog.encode_histories([history]), catalog)[0]
        order = scores.argsort(descending=True, stable=True).tolist()
        assert found.ranks[row, 0] == order.index(target)
        twins = int((scores == scores[target]).sum())
        assert found.negatives_above[row, 0] == (scores > scores[target]).sum() + twins - 1


def test_metrics_are_those_of_an_evaluation_whose_beams_are_not_pruned() -> None:
    model, catalog = tiny_model("qwen2", seed=6), catalog_of(random_items(60, (3, 3), seed=1))
    examples = examples_of(40, catalog)
    found = exact_metrics(model, catalog, examples, opauc_beta=0.2)
    expected = evaluate(model, catalog, examples, EvaluationConfig(beam_width=60, exclude_history="no"))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    ranks = exact_ranks(model, catalog, examples).ranks[:, 0]
    assert found["auc"] == pytest.approx(1 - ranks.mean() / 59)
    assert found["opauc"] == pytest.approx(np.mean(1 - np.minimum(ranks, 12) / 12))  # against ceil(0.2 * 59) of them
    assert 0 < found["opauc"] < found["auc"] < 1


def of_scores(scores: Tensor, positives: list[int], k: int, beta: float) -> dict[str, float]:
    """A user's figures by their definitions, from the scores themselves."""
    of_positives = scores[positives]
    of_others = scores[[item for item in range(len(scores)) if item not in positives]]
    order = scores.argsort(descending=True, stable=True).tolist()
    gains = [item in positives for item in order[:k]]
    discounts = 1 / np.log2(np.arange(k) + 2.0)
    count, others = len(of_positives), len(of_others)
    found = {
        f"recall@{k}": sum(gains) / count,
        f"ndcg@{k}": discounts[gains].sum() / discounts[: min(k, count)].sum(),
        "auc": metrics.auc(of_positives, of_others),
        "opauc": metrics.opauc(of_positives, of_others, beta),
    }
    if count <= k <= others:
        found[f"wpauc@{k}"] = metrics.wpauc(of_positives, of_others, (k - count) / others, count / others)
    return found


@pytest.mark.parametrize("k", [1, 3, 5, 10])
@pytest.mark.parametrize("twins", [False, True])
def test_metrics_of_several_positives_are_means_of_what_each_users_scores_give(k: int, twins: bool) -> None:
    items = random_items(50, (3, 3), seed=8)
    if twins:  # ten sequences of five items each: ties everywhere
        items = items[:10] * 5
    model, catalog = tiny_model("qwen2", seed=7), catalog_of(items)
    also = Ragged.of([np.array(row, dtype=np.int64) for row in ([3, 4], [], [49, 49, 5], [0, 1, 2, 6], [8])])
    examples = examples_of(5, catalog, also=also)
    found = full_metrics(exact_ranks(model, catalog, examples), opauc_beta=0.3)
    users: dict[str, list[float]] = {}
    for history, target, further in zip(examples.histories, examples.targets, also, strict=True):
        scores = score_catalog(model, *catalog.encode_histories([history]), catalog)[0]
        positives = list(dict.fromkeys([int(target), *further.tolist()]))
        for name, value in of_scores(scores, positives, k, 0.3).items():
            users.setdefault(name, []).append(value)
    for name, values in users.items():
        assert found[name] == pytest.approx(np.mean(values), abs=1e-12), name


def test_the_windows_area_and_the_recall_keep_to_theorem_3_4() -> None:
    model, catalog = tiny_model("qwen2", seed=9), catalog_of(random_items(60, (3, 3), seed=1))
    random = np.random.default_rng(3)
    also = Ragged.of([random.permutation(60)[:2] for _ in range(30)])
    found = exact_ranks(model, catalog, examples_of(30, catalog, also=also))
    for row, k in itertools.product(range(30), (3, 5, 10)):
        one = type(found)(found.ranks[row : row + 1], found.negatives_above[row : row + 1], found.num_items)
        figures = full_metrics(one)
        low, high = metrics.recall_bounds(figures[f"wpauc@{k}"], int((one.ranks >= 0).sum()))
        assert low <= figures[f"recall@{k}"] <= high


def test_arguments_that_do_not_fit_are_refused_by_name() -> None:
    model, catalog = tiny_model("qwen2"), catalog_of([[3, 4], [5, 6], [7, 8]])
    prompts = ragged_prompts(2, 4)
    with pytest.raises(ValueError, match="chunk"):
        score_catalog(model, *prompts, catalog, chunk=0)
    with pytest.raises(ValueError, match="normalizer"):
        score_catalog(model, *prompts, catalog, normalizer="words")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="catalog"):
        score_catalog(model, *prompts, [[3, 4]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="left-padded"):
        score_catalog(model, prompts[0], 1 - prompts[1], catalog)
    histories = [np.array([0])]
    for targets, further in (([3], []), ([-1], []), ([0], [1, 2])):
        also = Ragged.of([np.array(further, dtype=np.int64)])
        with pytest.raises(ValueError, match="examples"):
            exact_ranks(model, catalog, Examples(np.arange(1), histories, np.array(targets), also))
    with pytest.raises(ValueError, match="at least one"):
        exact_ranks(model, catalog, Examples(np.arange(0), [], np.zeros(0, dtype=np.int64)))


def test_a_catalogue_of_single_tokens_is_scored_by_the_prompts_alone() -> None:
    model: nn.Module = tiny_model("llama")
    input_ids, mask = ragged_prompts(2, 4)
    found = score_catalog(model, input_ids, mask, ItemTrie.from_sequences([[9], [4], [5]]))
    with torch.no_grad():
        torch.testing.assert_close(found, exhaustive(model, input_ids, mask, [[9], [4], [5]]), **TOLERANCE)
