"""What both models owe: no look ahead, no effect of padding or of items beyond the history's limit."""

import numpy as np
import pytest
import torch

from experiments.baselines import SequenceModelOptions
from experiments.baselines.sequence_model import padded
from experiments.baselines.training import MODELS
from tawin.data.ragged import Ragged

NUM_ITEMS = 30
OPTIONS = SequenceModelOptions(hidden_size=16, layers=2, heads=2, max_history=9)
CPU = torch.device("cpu")
# States are of size 1; a batch of another shape sums in another order, a few fp32 roundings (6e-8) a layer.
TOLERANCE = 1e-5


@pytest.fixture(params=sorted(MODELS))
def model(request):
    """With weights large enough that every item matters to the states after it."""
    torch.manual_seed(0)
    model = MODELS[request.param](NUM_ITEMS, OPTIONS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model


def sequences(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return Ragged.of([rng.integers(0, NUM_ITEMS, length) for length in lengths])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_later_item_changes_no_earlier_state(model, training):
    items, lengths = padded(sequences(9, 9), CPU)
    changed = items.clone()
    changed[:, 6] = (changed[:, 6] + 1) % NUM_ITEMS
    model.train(training)
    with torch.no_grad():
        states = []
        for batch in (items, changed):
            torch.manual_seed(1)  # the same dropout for both
            states.append(model(batch, lengths))
    assert torch.equal(states[0][:, :6], states[1][:, :6])
    assert (states[0][:, 6:] - states[1][:, 6:]).abs().amax(-1).min() > 1e-3


def test_an_earlier_item_changes_the_last_state(model):
    items, lengths = padded(sequences(9), CPU)
    changed = items.clone()
    changed[:, 0] = (changed[:, 0] + 1) % NUM_ITEMS
    with torch.no_grad():
        assert (model(items, lengths)[:, -1] - model(changed, lengths)[:, -1]).abs().max() > 10 * TOLERANCE


def test_padding_does_not_change_scores(model):
    histories = sequences(3, 9, 1, 5)
    with torch.no_grad():
        together = model.scores(model.last_states(histories))
        alone = torch.cat([model.scores(model.last_states(histories[row : row + 1])) for row in range(4)])
        items, lengths = padded(histories, CPU)
        filled = items.masked_fill(torch.arange(9) >= lengths[:, None], 7)  # another item as padding
        refilled = model(filled, lengths)[torch.arange(4), lengths - 1]
    torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(together, model.scores(refilled), atol=TOLERANCE, rtol=TOLERANCE)


def test_only_the_most_recent_items_of_a_long_history_count(model):
    histories = sequences(20, 12)
    with torch.no_grad():
        assert torch.equal(model.last_states(histories), model.last_states(histories.last(OPTIONS.max_history)))


def test_scores_are_dot_products_with_the_input_embeddings_and_a_bias(model):
    with torch.no_grad():
        model.item_bias.normal_()
        states = torch.randn(3, OPTIONS.hidden_size)
        expected = [
            [float(state @ model.items.weight[item] + model.item_bias[item]) for item in range(NUM_ITEMS)]
            for state in states
        ]
        torch.testing.assert_close(model.scores(states), torch.tensor(expected), atol=TOLERANCE, rtol=TOLERANCE)


def test_padded_puts_item_0_behind_the_ends():
    items, lengths = padded(Ragged.of([np.array([4, 2]), np.array([9]), np.array([1, 5, 3])]), CPU)
    assert items.tolist() == [[4, 2, 0], [9, 0, 0], [1, 5, 3]]
    assert lengths.tolist() == [2, 1, 3]
    assert items.dtype == lengths.dtype == torch.int64
