"""Ranks against a slow reference, with ties, and what cannot be ranked."""

import numpy as np
import pytest
import torch

from experiments.baselines import SequenceModelOptions, ranks
from experiments.baselines.sasrec import SASRec
from experiments.baselines.sequence_model import SequenceModel
from tawin.data.dataset import Examples
from tawin.data.ragged import Ragged

NUM_ITEMS = 17


class LastItem(SequenceModel):
    """A state is the last item's embedding: with few integers in it, scores are exact and many of them equal."""

    def forward(self, items, lengths):
        return self.items(items)


@pytest.fixture
def model():
    model = LastItem(NUM_ITEMS, SequenceModelOptions(hidden_size=2, heads=1, max_history=4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.items.weight.copy_(torch.randint(-1, 2, (NUM_ITEMS, 2), generator=generator))
        model.item_bias.copy_(torch.randint(0, 2, (NUM_ITEMS,), generator=generator))
    return model


def some_examples(count, seed=0):
    rng = np.random.default_rng(seed)
    histories = [rng.integers(0, NUM_ITEMS, rng.integers(1, 8)) for _ in range(count)]
    return Examples(np.arange(count), Ragged.of(histories), rng.integers(0, NUM_ITEMS, count))


def slow_ranks(model, examples, exclude_history):
    table, bias = model.items.weight.tolist(), model.item_bias.tolist()
    found = []
    for history, target in zip(examples.histories, examples.targets, strict=True):
        state = table[history[-1]]
        scores = [sum(a * b for a, b in zip(state, table[item], strict=True)) + bias[item] for item in range(NUM_ITEMS)]
        candidates = [item for item in range(NUM_ITEMS) if not (exclude_history and item in history)]
        best_first = sorted(candidates, key=lambda item: (-scores[item], item))
        found.append(best_first.index(target) if target in best_first else -1)
    return found


@pytest.mark.parametrize("exclude_history", [False, True])
def test_ranks_are_those_of_a_sorted_list_with_ties_by_item(model, exclude_history):
    examples = some_examples(300)
    found = ranks(model, examples, exclude_history=exclude_history, batch_size=64)
    assert found.dtype == np.int32
    assert found.tolist() == slow_ranks(model, examples, exclude_history)
    assert (found == -1).any() == exclude_history


def test_a_model_that_is_training_is_ranked_without_dropout_and_goes_on_training():
    torch.manual_seed(0)
    model = SASRec(NUM_ITEMS, SequenceModelOptions(hidden_size=8, heads=1, dropout=0.9)).train()
    examples = some_examples(50)
    assert np.array_equal(ranks(model, examples), ranks(model, examples))
    assert model.training


def test_no_examples_have_no_ranks(model):
    assert ranks(model, some_examples(3).take([])).shape == (0,)


def test_what_cannot_be_ranked_is_refused(model):
    empty = Examples(np.arange(2), Ragged.of([np.array([1]), np.zeros(0, dtype=np.int64)]), np.array([1, 2]))
    with pytest.raises(ValueError, match="histories: expected at least 1 items in each, got 0"):
        ranks(model, empty)
    outside = Examples(np.arange(1), Ragged.of([np.array([NUM_ITEMS])]), np.array([1]))
    with pytest.raises(ValueError, match=r"histories: expected items in \[0, 17\)"):
        ranks(model, outside)
    with pytest.raises(ValueError, match=r"targets: expected items in \[0, 17\)"):
        ranks(model, Examples(np.arange(1), Ragged.of([np.array([1])]), np.array([-1])))
    with torch.no_grad():
        model.item_bias[3] = torch.nan
    with pytest.raises(FloatingPointError, match="scores: expected finite ones"):
        ranks(model, some_examples(3))
