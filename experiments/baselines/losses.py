"""Losses of a sequence model, one value a target: the softmax over the items, whole or estimated, and SASRec's own."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .sequence_model import SequenceModel


def cross_entropy(model: SequenceModel, states: Tensor, targets: Tensor, negatives: int = 0) -> Tensor:
    """-log softmax of the target's score among all items: [P] for states [P, H] and targets int64 [P].

    With `negatives` > 0 the other items' part of the softmax's sum is estimated, without bias, from that many of them,
    drawn uniformly without replacement and the same for all targets of the call.
    """
    if negatives == 0 or negatives >= model.num_items:
        return functional.cross_entropy(model.scores(states), targets, reduction="none")
    drawn = torch.randperm(model.num_items, device=states.device)[:negatives]  # [M]
    # Each stands for that many items.
    bias = model.item_bias[drawn] + math.log(model.num_items / negatives)
    scores = functional.linear(states, model.items.weight[drawn], bias)  # [P, M]
    column = torch.full((model.num_items,), -1, device=states.device)
    column[drawn] = torch.arange(negatives, device=states.device)
    column = column[targets]  # [P], of the target among those drawn, -1 for none
    among = (column >= 0).nonzero()[:, 0]
    scores[among, column[among]] = torch.finfo(scores.dtype).min  # counts nothing; a lone -inf would make NaN gradients
    target_scores = model.scores_of(states, targets)  # [P]
    return torch.logaddexp(target_scores, scores.logsumexp(dim=1)) - target_scores


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
