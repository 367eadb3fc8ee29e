"""The losses against plain sums, and the estimated softmax against the whole one."""

import math

import pytest
import torch
from torch.nn import functional

from experiments.baselines import SequenceModelOptions
from experiments.baselines.gru4rec import GRU4Rec
from experiments.baselines.losses import binary_loss, cross_entropy

NUM_ITEMS = 9


@pytest.fixture
def case():
    """A model, states [4, H] and their targets."""
    torch.manual_seed(0)
    model = GRU4Rec(NUM_ITEMS, SequenceModelOptions(hidden_size=4, heads=1))
    with torch.no_grad():
        model.items.weight.normal_()
        model.item_bias.normal_()
    return model, torch.randn(4, 4), torch.tensor([0, 3, 8, 3])


def test_cross_entropy_is_minus_the_log_share_of_the_targets_exponential(case):
    model, states, targets = case
    exponentials = model.scores(states).exp()
    expected = -(exponentials[torch.arange(4), targets] / exponentials.sum(1)).log()
    torch.testing.assert_close(cross_entropy(model, states, targets), expected)


def test_as_many_negatives_as_items_are_the_whole_softmax(case):
    model, states, targets = case
    whole = cross_entropy(model, states, targets)
    assert torch.equal(cross_entropy(model, states, targets, NUM_ITEMS), whole)


def test_the_estimate_of_the_softmax_sum_has_no_bias(case):
    model, states, targets = case
    target_scores = model.scores_of(states, targets)
    sums = [(cross_entropy(model, states, targets, 3) + target_scores).exp() for _ in range(4000)]
    estimates = torch.stack(sums)  # [draws, P]
    # Four standard errors of the mean: a correct estimate fails once in 4,000 such tests, and the seed is fixed.
    error = 4 * estimates.std(0) / math.sqrt(len(estimates))
    assert (estimates.mean(0) - model.scores(states).exp().sum(1)).abs().le(error).all()


def test_a_lone_negative_that_is_the_target_costs_nothing_and_has_gradients_of_zero(case):
    model, states, _ = case
    torch.manual_seed(3)
    drawn = torch.randperm(NUM_ITEMS)[:1]
    torch.manual_seed(3)
    states = states[:1].requires_grad_()
    loss = cross_entropy(model, states, drawn, 1)
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.zeros(1))
    torch.testing.assert_close(states.grad, torch.zeros_like(states))


def test_the_binary_loss_is_that_of_the_target_and_of_one_item_which_the_sequence_does_not_hold(case):
    model, states, targets = case
    held = torch.tensor([[0, 1, -1]] * 4)
    torch.manual_seed(3)
    drawn = torch.randint(NUM_ITEMS, (4,))
    torch.manual_seed(3)
    found = binary_loss(model, states, targets, held)

    scores = model.scores(states)
    expected = [
        -functional.logsigmoid(scores[row, targets[row]])
        - (0.0 if drawn[row] in (0, 1) else functional.logsigmoid(-scores[row, drawn[row]]))
        for row in range(4)
    ]
    assert any(item in (0, 1) for item in drawn)  # else the seed shows nothing
    torch.testing.assert_close(found, torch.stack(expected))
