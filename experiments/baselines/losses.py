"""Losses of a sequence model, one value a target: the softmax over the items, whole or estimated, and SASRec's own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tawin.model.sampled_softmax import sampled_log_probs

from .sequence_model import SequenceModel


def cross_entropy(model: SequenceModel, states: Tensor, targets: Tensor, negatives: int = 0) -> Tensor:
    """-log softmax of the target's score among all items: [P] for states [P, H] and targets int64 [P].

    With `negatives` > 0 the other items' part of the softmax's sum is estimated, without bias, from that many of them,
    drawn uniformly without replacement and the same for all targets of the call.
    """
    if negatives == 0 or negatives >= model.num_items:
        return functional.cross_entropy(model.scores(states), targets, reduction="none")
    return -sampled_log_probs(states, model.items.weight, model.item_bias, targets, negatives)


def binary_loss(model: SequenceModel, states: Tensor, targets: Tensor, held: Tensor) -> Tensor:
    """-log sigmoid(target's score) - log(1 - sigmoid(a random item's score)), SASRec's equation 6: [P].

    states [P, H]; targets int64 [P]; held int64 [P, M]: items of the target's sequence, -1 for none. The random item is
    uniform; where the sequence holds it, its term is left out, which is the paper's draw among the others up to a
    factor of (1 - M / items) on that term.
    """
    drawn = torch.randint(model.num_items, targets.shape, device=targets.device)  # [P]
    counts = (held != drawn[:, None]).all(dim=1)
    positive = functional.softplus(-model.scores_of(states, targets))
    return positive + counts * functional.softplus(model.scores_of(states, drawn))
