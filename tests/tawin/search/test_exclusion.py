"""What a search with excluded items finds: as if the trie did not have them, scores untouched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tawin_kernels import ItemTrie

from tawin.search.completions import beam_search
from tawin.search.exclusion import excluded_of

from ..models import tiny_model

END = 3
ITEM = st.lists(st.integers(4, 7), min_size=1, max_size=3)  # few tokens: shared sequences and shared beginnings
PROMPTS = (torch.tensor([[0, 0, 9, 10], [8, 9, 10, 11]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]))


@settings(max_examples=60)
@given(items=st.lists(ITEM, min_size=2, max_size=30), width=st.integers(1, 12), data=st.data())
def test_a_search_finds_what_it_finds_in_a_trie_without_the_excluded_items(
    items: list[list[int]], width: int, data: Any
) -> None:
    model, trie = tiny_model("qwen2", seed=1), ItemTrie.from_sequences(items, end_token=END)
    some = st.lists(st.integers(0, len(items) - 1), max_size=len(items))
    exclude = [np.array(data.draw(some), dtype=np.int64) for _ in range(2)]
    found = beam_search(model, *PROMPTS, trie, width, exclude=exclude)
    for row, gone in enumerate(exclude):
        left = [item for item in range(len(items)) if item not in gone]
        if not left:
            assert (found.item_ids[row] == -1).all() and torch.isneginf(found.scores[row]).all()
            continue
        smaller = ItemTrie.from_sequences([items[item] for item in left], end_token=END)
        alone = beam_search(model, *(part[row : row + 1] for part in PROMPTS), smaller, width)
        present = alone.item_ids[0] >= 0
        expected = torch.where(present, torch.tensor(left)[alone.item_ids[0].clamp_min(0)], -1)
        assert found.item_ids[row].tolist() == expected.tolist()
        assert found.token_ids[row, :, : smaller.max_depth].tolist() == alone.token_ids[0].tolist()
        assert found.mask[row].sum() == alone.mask[0].sum()
        torch.testing.assert_close(found.scores[row], alone.scores[0], atol=1e-4, rtol=0)  # padded differently


@pytest.mark.parametrize("normalizer", ["vocab", "trie"])
def test_the_scores_of_the_others_stay(normalizer: Any) -> None:
    items = [[5, 6], [5, 7], [5, 6], [4, 4], [4, 5], [6, 6]]
    model, trie = tiny_model("qwen2", seed=1), ItemTrie.from_sequences(items)
    everything = beam_search(model, *PROMPTS, trie, 6, normalizer=normalizer)
    gone = [np.array([1, 0]), np.array([3, 4])]  # a sequence that another item shares; a whole branch
    found = beam_search(model, *PROMPTS, trie, 6, normalizer=normalizer, exclude=gone)
    for row in range(2):
        kept = [at for at, item in enumerate(everything.item_ids[row].tolist()) if item not in gone[row]]
        assert found.item_ids[row].tolist() == [*everything.item_ids[row, kept].tolist(), -1, -1]
        # Fewer beams are summed in another order.
        assert found.scores[row, :4].tolist() == pytest.approx(everything.scores[row, kept].tolist(), rel=1e-6)


def test_no_excluded_item_changes_nothing() -> None:
    model, trie = tiny_model("qwen2", seed=1), ItemTrie.from_sequences([[5, 6], [5, 7], [4, 4]])
    found = beam_search(model, *PROMPTS, trie, 2, exclude=[np.zeros(0, dtype=np.int64)] * 2)
    expected = beam_search(model, *PROMPTS, trie, 2)
    assert torch.equal(found.item_ids, expected.item_ids) and torch.equal(found.scores, expected.scores)


def test_items_that_the_catalogue_does_not_have_are_refused() -> None:
    trie = ItemTrie.from_sequences([[5, 6], [5, 7]])
    with pytest.raises(ValueError, match=r"exclude: expected items in \[0, 2\), got 1..2"):
        excluded_of(trie, [np.array([1, 2])])
    with pytest.raises(ValueError, match="exclude: expected items of each of 2 prompts, got 1"):
        beam_search(tiny_model("qwen2"), *PROMPTS, trie, 2, exclude=[np.array([1])])
