"""Ranks of targets among recommended items; histories left out where asked."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tawin_kernels import ItemTrie

from tawin.catalog.catalog import Catalog
from tawin.config import Config, EvaluationConfig
from tawin.data.dataset import Dataset, Examples, Items, split_leave_one_out
from tawin.evaluate.ranking import Recommendations, decided, evaluate, recommend, repeat_share, sampled, target_ranks
from tawin.search.completions import beam_search

from ..models import tiny_model
from ..small_groups import small_catalog

CONFIG = EvaluationConfig(beam_width=10, batch_size=2, exclude_history="no")
HISTORIES = [np.array(h) for h in ([0], [1, 2, 3], [5, 6], [4], [2, 0, 1, 3])]


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_recommendations_are_those_of_one_beam_search_a_history(normalizer) -> None:
    model, catalog = tiny_model("qwen2", seed=2), small_catalog()
    found = recommend(model, catalog, HISTORIES, dataclasses.replace(CONFIG, normalizer=normalizer))
    for row, history in enumerate(HISTORIES):
        alone = beam_search(model, *catalog.encode_histories([history]), catalog.trie, 10, normalizer=normalizer)
        assert found.items[row].tolist() == alone.item_ids[0, :7].tolist()
        np.testing.assert_allclose(found.scores[row], alone.scores[0, :7], atol=1e-4)  # fp32, padded differently
        assert sorted(found.items[row]) == list(range(7)) and (alone.item_ids[0, 7:] == -1).all()


def test_an_excluded_history_is_not_recommended_and_the_rest_moves_up() -> None:
    model, catalog = tiny_model("qwen2", seed=2), small_catalog()
    everything = recommend(model, catalog, HISTORIES, CONFIG)
    without = recommend(model, catalog, HISTORIES, dataclasses.replace(CONFIG, exclude_history="yes"))
    for row, history in enumerate(HISTORIES):
        expected = [item for item in everything.items[row] if item >= 0 and item not in history]
        assert without.items[row].tolist() == expected + [-1] * (7 - len(expected))
        assert np.isneginf(without.scores[row, len(expected) :]).all()


def test_what_a_user_has_seen_is_excluded_where_the_prompt_has_only_the_end_of_it() -> None:
    """20 items of 80 seen, 4 in the prompt: 60 are left, whatever the beam width."""
    catalog = catalog_of(80)
    random = np.random.default_rng(0)
    dataset = Dataset("made", np.arange(6), [random.permutation(80)[:21] for _ in range(6)], Items(np.arange(80)))
    examples = split_leave_one_out(dataset, max_history=4).test
    model = tiny_model("qwen2", seed=2)
    options = EvaluationConfig(beam_width=80, batch_size=4, exclude_history="yes")
    found = recommend(model, catalog, examples.histories, options, seen=examples.seen)
    for items, sequence in zip(found.items, dataset.sequences, strict=True):
        assert sorted(items[items >= 0]) == sorted(set(range(80)) - set(sequence[:20].tolist()))
    narrow = recommend(
        model, catalog, examples.histories, dataclasses.replace(options, beam_width=12), seen=examples.seen
    )
    assert (narrow.items >= 0).all() and not any(
        np.isin(items, sequence[:20]).any() for items, sequence in zip(narrow.items, dataset.sequences, strict=True)
    )
    seen_again = dataclasses.replace(examples, targets=np.array([sequence[0] for sequence in dataset.sequences]))
    assert evaluate(model, catalog, seen_again, options)["recall@10"] == 0.0


def catalog_of(items: int) -> Catalog:
    tokens = torch.tensor([[5 + item // 8, 15 + item % 8] for item in range(items)])
    trie = ItemTrie.from_sequences(tokens)
    return Catalog(np.arange(items), None, None, tokens, trie, trie.leaf_of_item, (1,), 0, None)


def test_ranks_are_zero_based_and_minus_one_where_not_found() -> None:
    items = np.array([[3, 1, 2], [4, 0, -1]])
    found = Recommendations(items, np.zeros((2, 3), dtype=np.float32))
    assert target_ranks(found, np.array([2, 9])).tolist() == [2, -1]
    assert target_ranks(found, np.array([3, 0])).tolist() == [0, 1]


def test_the_whole_catalogue_in_the_beam_finds_every_target() -> None:
    model, catalog = tiny_model("qwen2", seed=2), small_catalog()
    examples = Examples(np.arange(5), HISTORIES, np.array([0, 1, 2, 3, 4]))
    figures = evaluate(model, catalog, examples, CONFIG)
    assert figures["recall@10"] == 1.0
    assert figures["recall@1"] == pytest.approx(figures["wpauc@1"])
    model.train()
    evaluate(model, catalog, examples, CONFIG)
    assert model.training


def test_sampling_is_the_same_for_the_same_seed() -> None:
    examples = Examples(np.arange(5), HISTORIES, np.arange(5))
    assert sampled(examples, None, 0) is examples
    assert sampled(examples, 3, 1).user_ids.tolist() == sampled(examples, 3, 1).user_ids.tolist()
    assert len(sampled(examples, 3, 1)) == 3


def test_exclusion_is_decided_by_repeats_in_the_training_items_alone() -> None:
    """Nobody repeats an item in training, and everybody does in test: the data says yes. One repeat in 40 says no."""
    distinct = [np.array([user, user + 1, user + 2, user + 3, user + 3]) for user in range(30)]
    repeating = [*distinct[:-1], np.array([1, 1, 1, 2, 3])]
    for sequences, expected in ((distinct, "yes"), (repeating, "no")):
        split = split_leave_one_out(Dataset("made", np.arange(30), sequences, Items(np.arange(33))))
        assert decided(Config(), split).evaluation.exclude_history == expected
    asked = Config(evaluation=EvaluationConfig(exclude_history="no"))
    assert decided(asked, split_leave_one_out(Dataset("made", np.arange(30), distinct, Items(np.arange(33))))) == asked


def test_an_undecided_exclusion_is_refused() -> None:
    with pytest.raises(ValueError, match=r"evaluation\.exclude_history: expected yes or no"):
        recommend(tiny_model("qwen2", seed=2), small_catalog(), HISTORIES, EvaluationConfig(beam_width=10))


def test_the_share_of_repeats_is_that_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    sequences = [random.integers(0, 5, size=random.integers(0, 7)) for _ in range(50)]
    repeats = sum(int(item in sequence[:place]) for sequence in sequences for place, item in enumerate(sequence))
    later = sum(max(0, len(sequence) - 1) for sequence in sequences)
    assert repeat_share(sequences) == pytest.approx(repeats / later)
    assert repeat_share([]) == repeat_share([np.array([3])]) == 0.0
    monkeypatch.setattr("tawin.evaluate.ranking.USERS_ASKED", 1)
    assert repeat_share([np.array([1, 2, 1]), np.array([4, 4])]) == 0.5
