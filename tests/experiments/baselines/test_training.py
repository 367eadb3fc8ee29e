"""Training of both models on sequences whose next item is known, and what it promises: seeds, best epoch, errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.baselines import SequenceModelOptions, fit, ranks, training
from experiments.baselines.training import MODELS, _batches
from tawin.catalog.item_vectors import cooccurrence_vectors
from tawin.data.dataset import Examples
from tawin.data.ragged import Ragged
from tawin.metrics import recall_at_k

NUM_ITEMS = 12
SMALL = SequenceModelOptions(
    hidden_size=16,
    layers=1,
    dropout=0.1,
    learning_rate=0.01,
    batch_size=32,
    epochs=12,
    max_history=6,
    selection="recall@1",
)
KINDS = pytest.mark.parametrize("kind", sorted(MODELS))


def chain(users, length, seed=0):
    """Sequences in which an item always has the same successor, all items equally often, and what follows each."""
    rng = np.random.default_rng(seed)
    cycle = rng.permutation(NUM_ITEMS)
    starts = np.arange(users) % NUM_ITEMS
    items = cycle[(starts[:, None] + np.arange(length + 1)) % NUM_ITEMS]
    return Ragged.of(list(items[:, :-1])), items[:, -1]


def examples(histories, targets):
    return Examples(np.arange(len(targets)), Ragged.of(histories), np.asarray(targets, dtype=np.int64))


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@KINDS
@pytest.mark.parametrize("negatives", [0, 6])
def test_a_deterministic_chain_is_learned_which_popularity_cannot_rank(kind, negatives):
    sequences, following = chain(users=240, length=5)
    options = SequenceModelOptions(**{**vars(SMALL), "negatives": negatives, "epochs": 30, "patience": 30})
    valid = examples(sequences, following)

    model = fit(kind, sequences, NUM_ITEMS, options, seed=0, valid=valid)

    popularity = np.argsort(-np.bincount(sequences.flat(), minlength=NUM_ITEMS), kind="stable")
    assert recall_at_k(np.argsort(popularity)[following], 1) == pytest.approx(1 / NUM_ITEMS)
    assert recall_at_k(ranks(model, valid), 1) > 0.99


@KINDS
def test_the_binary_loss_learns_a_chain_up_to_the_items_that_it_never_draws(kind):
    sequences, following = chain(users=240, length=2)
    options = SequenceModelOptions(
        **{**vars(SMALL), "loss": "bce", "epochs": 40, "patience": 40, "selection": "ndcg@3"}
    )
    valid = examples(sequences.last(1), following)
    # It draws no item of the sequence itself, here the history, and so does not learn how low that should stand.
    model = fit(kind, sequences, NUM_ITEMS, options, seed=0, valid=valid)
    assert recall_at_k(ranks(model, valid, exclude_history=True), 1) > 0.99


@KINDS
def test_every_item_of_a_sequence_longer_than_the_history_is_a_target(kind):
    sequences, _ = chain(users=NUM_ITEMS, length=3 * SMALL.max_history)
    options = SequenceModelOptions(**{**vars(SMALL), "batch_size": 4, "epochs": 30, "patience": 30})
    # Each successor is seen: after any prefix the next item is known, near the start and near the end.
    cuts = [(sequence[:cut], sequence[cut]) for sequence in sequences for cut in (1, 5, 9, 17)]
    valid = examples([history for history, _ in cuts], [target for _, target in cuts])
    assert recall_at_k(ranks(fit(kind, sequences, NUM_ITEMS, options, seed=0, valid=valid), valid), 1) > 0.99


@KINDS
def test_the_same_seed_gives_the_same_bits_and_leaves_the_callers_random_state_alone(kind):
    sequences, following = chain(users=40, length=4)
    valid = examples(sequences, following)
    options = SequenceModelOptions(**{**vars(SMALL), "epochs": 2, "negatives": 5})

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = weights(fit(kind, sequences, NUM_ITEMS, options, seed=1, valid=valid))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again = weights(fit(kind, sequences, NUM_ITEMS, options, seed=1, valid=valid))
    other = weights(fit(kind, sequences, NUM_ITEMS, options, seed=2, valid=valid))

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@KINDS
def test_the_best_epoch_is_kept_and_training_ends_when_patience_does(kind):
    sequences, following = chain(users=60, length=4)
    # Valid wants the opposite of what is trained, so that the first epochs are the best ones.
    valid = examples(sequences, (following + 5) % NUM_ITEMS)
    options = SequenceModelOptions(**{**vars(SMALL), "epochs": 40, "patience": 3, "selection": "ndcg@3"})
    epochs = []

    model = fit(kind, sequences, NUM_ITEMS, options, seed=0, valid=valid, on_epoch=epochs.append)

    figures = [epoch.valid["ndcg@3"] for epoch in epochs]
    best = int(np.argmax(figures))
    assert [epoch.number for epoch in epochs] == list(range(1, best + options.patience + 2))
    assert len(epochs) < options.epochs
    found = ranks(model, valid)
    assert np.where(found < 3, 1 / np.log2(found + 2), 0).mean() == pytest.approx(figures[best])
    assert not model.training


@KINDS
def test_the_loss_of_the_first_epoch_starts_at_that_of_a_uniform_guess(kind):
    sequences, following = chain(users=40, length=4)
    epochs = []
    options = SequenceModelOptions(**{**vars(SMALL), "epochs": 1, "learning_rate": 1e-6})
    fit(kind, sequences, NUM_ITEMS, options, seed=0, valid=examples(sequences, following), on_epoch=epochs.append)
    # Small first weights: the scores are 0 to within 0.1 or so, and the mean over 120 targets to within half of that.
    assert epochs[0].loss == pytest.approx(np.log(NUM_ITEMS), abs=0.05)


def test_bad_arguments_of_fit_are_refused_by_name():
    sequences, following = chain(users=12, length=4)
    valid = examples(sequences, following)
    with pytest.raises(ValueError, match=r"kind: expected one of .*sasrec.*got 'caser'"):
        fit("caser", sequences, NUM_ITEMS, SMALL, seed=0, valid=valid)
    with pytest.raises(ValueError, match="valid: expected at least one example"):
        fit("sasrec", sequences, NUM_ITEMS, SMALL, seed=0, valid=valid.take([]))
    with pytest.raises(ValueError, match="sequences: expected one of at least 2 items"):
        fit("sasrec", sequences.last(1), NUM_ITEMS, SMALL, seed=0, valid=valid)
    with pytest.raises(ValueError, match=r"sequences: expected items in \[0, 5\), got 0 to 11"):
        fit("sasrec", sequences, 5, SMALL, seed=0, valid=valid)


def test_a_training_that_diverges_says_so():
    sequences, following = chain(users=64, length=4)
    options = SequenceModelOptions(**{**vars(SMALL), "learning_rate": 1e37})
    with pytest.raises(FloatingPointError, match="learning_rate"):
        fit("gru4rec", sequences, NUM_ITEMS, options, seed=0, valid=examples(sequences, following))


def test_batches_hold_every_window_once_and_windows_of_similar_lengths_together():
    rng = np.random.default_rng(0)
    windows = Ragged.of([np.full(rng.integers(2, 20), number) for number in range(700)])
    batches = list(_batches(windows, np.arange(700), 8, rng))

    assert sorted(int(window[0]) for batch, _ in batches for window in batch) == list(range(700))
    assert all(first == window[0] for batch, firsts in batches for window, first in zip(batch, firsts, strict=True))
    assert len(batches) == 88
    spread = np.mean([np.ptp(batch.lengths) for batch, _ in batches])
    assert spread < 3  # of 17; eight at random differ by 14
    assert np.abs(np.diff([batch.lengths.mean() for batch, _ in batches])).mean() > 3  # and not in order of length


@KINDS
def test_items_may_begin_at_their_cooccurrence_at_the_spread_of_random_ones(kind, monkeypatch):
    begun = []
    monkeypatch.setattr(training, "_train_epoch", lambda model, *_: begun.append(model.items.weight.clone()) or 0.0)
    sequences, targets = chain(60, 6)
    options = replace(SMALL, epochs=1, cooccurrence=True)
    fit(kind, sequences, NUM_ITEMS, options, seed=0, valid=examples(sequences, targets))
    vectors = torch.from_numpy(cooccurrence_vectors(sequences, NUM_ITEMS, SMALL.hidden_size))
    torch.testing.assert_close(begun[0] / begun[0].std(), vectors / vectors.std())
    assert 0.01 < float(begun[0].std()) < 0.03
