"""Ranks of the targets among all items of the catalogue, by a sequence model's scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tawin.data.dataset import Examples
from tawin.data.ragged import Ragged
from tawin.model.policy import evaluating

from .sequence_model import SequenceModel


@torch.inference_mode()
def ranks(
    model: SequenceModel, examples: Examples, *, exclude_history: bool = False, batch_size: int = 256
) -> np.ndarray:
    """The zero-based rank of each example's target: items of a higher score, or of the same one and a lower index.

    With `exclude_history` no item that the user has seen is a recommendation (the whole of it, even where the model
    sees less); a target among them has rank -1, not found. Otherwise every item counts.

    Returns:
        int32 [N]

    Raises:
        ValueError: an empty history, an item outside the model's catalogue.
        FloatingPointError: scores that are not finite, which would rank every target first.
    """
    histories = Ragged.of(examples.histories)
    check_items("histories", histories, model.num_items, at_least=1)
    seen = histories if examples.seen is None else examples.seen
    _check_range("targets", examples.targets, model.num_items)
    found = np.empty(len(examples), dtype=np.int32)
    with evaluating(model):
        for first in range(0, len(examples), batch_size):
            batch = slice(first, first + batch_size)
            excluded = seen[batch] if exclude_history else None
            found[batch] = _ranks(model, histories[batch], examples.targets[batch], excluded)
    return found


def check_items(name: str, sequences: Ragged, num_items: int, *, at_least: int) -> None:
    """ValueError unless every sequence holds `at_least` items and every item lies in [0, num_items)."""
    shortest = int(sequences.lengths.min(initial=at_least))
    if shortest < at_least:
        raise ValueError(f"{name}: expected at least {at_least} items in each, got {shortest}")
    _check_range(name, sequences.flat(), num_items)


def _check_range(name: str, items: np.ndarray, num_items: int) -> None:
    if len(items) and (items.min() < 0 or items.max() >= num_items):
        raise ValueError(f"{name}: expected items in [0, {num_items}), got {items.min()} to {items.max()}")


def _ranks(model: SequenceModel, histories: Ragged, targets: np.ndarray, excluded: Ragged | None) -> np.ndarray:
    scores = model.scores(model.last_states(histories))  # [B, items]
    if not torch.stack(scores.aminmax()).isfinite().all():
        raise FloatingPointError("scores: expected finite ones, got inf or NaN; did training diverge?")
    target = torch.from_numpy(targets).to(scores.device)  # [B]
    if excluded is not None:
        rows = np.repeat(np.arange(len(excluded)), excluded.lengths)
        scores[rows, excluded.flat()] = -torch.inf
    target_score = scores.gather(1, target[:, None])  # [B, 1]
    rank = _count(torch.gt, scores, target_score)
    # The target is one of those as high as itself. Where it is not the only one, which is rare, lower indexes go first.
    tied = _count(torch.ge, scores, target_score) - rank > 1  # [B]
    first = torch.arange(scores.shape[1], device=scores.device) < target[tied, None]  # [tied, items]
    rank[tied] += ((scores[tied] == target_score[tied]) & first).sum(1)
    return torch.where(target_score[:, 0] == -torch.inf, -1, rank).int().cpu().numpy()


def _count(compare: Callable[..., Tensor], scores: Tensor, target_score: Tensor) -> Tensor:
    """How many of each row's scores compare so with the target's, int64 [B].

    Summed in fp32, where counts below 2^24 are exact: on a CPU a sum of bool first makes int64 of all of them.
    """
    return compare(scores, target_score, out=torch.empty_like(scores)).sum(1).long()
