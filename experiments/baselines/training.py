"""Trains a sequence model: every place of every sequence predicts the next item, until valid no longer improves.

The same for all models. It chooses the epoch on valid alone and never sees a test item.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from tawin.catalog.item_vectors import cooccurrence_vectors
from tawin.data.dataset import Examples, training_windows
from tawin.data.ragged import Ragged
from tawin.metrics import ranking_metrics

from .gru4rec import GRU4Rec
from .losses import binary_loss, cross_entropy
from .options import SequenceModelOptions
from .ranking import check_items, ranks
from .sasrec import SASRec
from .sequence_model import SequenceModel, padded

Kind = Literal["sasrec", "gru4rec"]
MODELS: dict[str, type[SequenceModel]] = {"sasrec": SASRec, "gru4rec": GRU4Rec}
LENGTH_POOL = 16  # batches


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training sequences came to."""

    number: int
    """From 1."""
    loss: float
    """Mean over the epoch's targets, dropout on."""
    valid: dict[str, float]
    """`ranking_metrics` after it."""


def fit(
    kind: Kind,
    sequences: Sequence[np.ndarray],
    num_items: int,
    options: SequenceModelOptions,
    *,
    seed: int,
    valid: Examples,
    exclude_history: bool = False,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[Epoch], None] | None = None,
) -> SequenceModel:
    """Trains a model of `kind` from scratch and gives it back with the weights of its best epoch on valid.

    Args:
        sequences: training items of each user as dense indexes, oldest first; `data.dataset.training_sequences`
            gives them. Those of one item teach nothing and are passed over.
        num_items: size of the catalogue, that is, of what is ranked.
        seed: of weights, order, dropout and negatives. The same seed, machine and number of threads give the same bits
            on a CPU; the caller's random state stays as it is.
        valid: chooses the epoch, by `options.selection`; exclude_history as in `ranks`.
        on_epoch: called after every epoch, the first to be given up included.

    Raises:
        ValueError: an unknown kind, nothing to train on, no valid examples, items outside of [0, num_items).
        FloatingPointError: the loss is no longer finite.
    """
    if kind not in MODELS:
        raise ValueError(f"kind: expected one of {get_args(Kind)}, got {kind!r}")
    if len(valid) == 0:
        raise ValueError("valid: expected at least one example, got none")
    windows, first_targets = training_windows(sequences, options.max_history)
    if len(windows) == 0:
        raise ValueError(f"sequences: expected one of at least 2 items, got {len(sequences)} shorter ones")
    check_items("sequences", windows, num_items, at_least=2)

    targets_a_step = float((windows.lengths - first_targets).mean()) * options.batch_size
    device = torch.device(device)
    order = np.random.default_rng(seed)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = MODELS[kind](num_items, options).to(device)
        if options.cooccurrence:
            vectors = torch.from_numpy(cooccurrence_vectors(sequences, num_items, options.hidden_size)).to(device)
            with torch.no_grad():
                model.items.weight.copy_(vectors * (model.items.weight.std() / vectors.std()))
        optimizer = torch.optim.AdamW(
            model.parameters(), options.learning_rate, weight_decay=options.weight_decay, fused=True
        )
        best, best_number, weights = -1.0, 0, model.state_dict()
        for number in range(1, options.epochs + 1):
            batches = _batches(windows, first_targets, options.batch_size, order)
            loss = _train_epoch(model, optimizer, batches, targets_a_step, options)
            epoch = Epoch(number, loss, ranking_metrics(ranks(model, valid, exclude_history=exclude_history)))
            if on_epoch is not None:
                on_epoch(epoch)
            if epoch.valid[options.selection] > best:
                best, best_number = epoch.valid[options.selection], number
                weights = copy.deepcopy(model.state_dict())
            elif number - best_number >= options.patience:
                break
    model.load_state_dict(weights)
    return model.eval()


def _batches(
    windows: Ragged, first_targets: np.ndarray, size: int, order: np.random.Generator
) -> Iterator[tuple[Ragged, np.ndarray]]:
    """The windows in random order, `size` at a time, with the indexes of their first targets.

    Batches are of windows of similar lengths, since padding costs as much as items do: LENGTH_POOL batches are drawn at
    random, sorted by length, cut, and come in random order.
    """
    shuffled = order.permutation(len(windows))
    for start in range(0, len(shuffled), size * LENGTH_POOL):
        pool = shuffled[start : start + size * LENGTH_POOL]
        pool = pool[np.argsort(windows.lengths[pool], kind="stable")]
        for batch in order.permutation(-(-len(pool) // size)):
            rows = pool[batch * size : (batch + 1) * size]
            yield windows.take(rows), first_targets[rows]


def _train_epoch(
    model: SequenceModel,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Ragged, np.ndarray]],
    targets_a_step: float,
    options: SequenceModelOptions,
) -> float:
    """One pass; the mean loss over its targets. `targets_a_step`: their mean number in a batch."""
    model.train()
    device = model.items.weight.device
    total, count = 0.0, 0
    for windows, first_targets in batches:
        items, lengths = padded(windows, device)  # [B, L + 1], [B]
        states = model(items[:, :-1], lengths - 1)  # [B, L, H]
        place = torch.arange(1, items.shape[1], device=device)  # of the item that a state predicts
        first = torch.from_numpy(first_targets).to(device)
        predicts = (first[:, None] <= place) & (place < lengths[:, None])  # [B, L]
        targets = items[:, 1:][predicts]  # [P]
        if options.loss == "cross_entropy":
            losses = cross_entropy(model, states[predicts], targets, options.negatives)  # [P]
        else:
            held = items.masked_fill(torch.arange(items.shape[1], device=device) >= lengths[:, None], -1)
            losses = binary_loss(model, states[predicts], targets, held[predicts.nonzero()[:, 0]])
        value = losses.sum().item()
        if not np.isfinite(value):
            raise FloatingPointError(f"loss: expected a finite one, got {value}; lower learning_rate")
        optimizer.zero_grad(set_to_none=True)
        # Not the batch's own mean: a target of a batch of short sequences would weigh more than one of long ones.
        (losses.sum() / targets_a_step).backward()
        optimizer.step()
        total, count = total + value, count + len(targets)
    return total / count
