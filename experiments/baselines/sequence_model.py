"""What SASRec and GRU4Rec share: item embeddings that are input and output, and histories padded into a batch.

An item's score after a history is the dot product of the history's last state and the item's embedding, plus the item's
bias. How states are made is the models' own affair; how they are trained, that of training.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor, nn

from tawin.data.ragged import Ragged, count_within

from .options import SequenceModelOptions


class SequenceModel(nn.Module, ABC):
    """Maps padded sequences to a state a place; the state at a place depends on the items up to there alone."""

    def __init__(self, num_items: int, options: SequenceModelOptions) -> None:
        super().__init__()
        self.max_history = options.max_history
        self.items = nn.Embedding(num_items, options.hidden_size)
        self.item_bias = nn.Parameter(torch.zeros(num_items))
        # torch's own N(0, 1) would make the first scores as large as the states are wide.
        nn.init.normal_(self.items.weight, std=0.02)

    @property
    def num_items(self) -> int:
        return self.items.num_embeddings

    @abstractmethod
    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        """States [B, L, H] for items int64 [B, L], right-padded, of lengths int64 [B]; past a length: anything finite.

        L is at most `max_history`.
        """

    def last_states(self, histories: Ragged) -> Tensor:
        """The state after each history's most recent `max_history` items, [B, H]; a history holds at least one."""
        items, lengths = padded(histories.last(self.max_history), self.items.weight.device)
        states = self(items, lengths)  # [B, L, H]
        return states[torch.arange(len(lengths), device=states.device), lengths - 1]

    def scores(self, states: Tensor) -> Tensor:
        """The score of every item, [N, items] for states [N, H]."""
        return nn.functional.linear(states, self.items.weight, self.item_bias)

    def scores_of(self, states: Tensor, items: Tensor) -> Tensor:
        """One item's score for each state, [N] for states [N, H] and items int64 [N]."""
        return (states * self.items(items)).sum(-1) + self.item_bias[items]


def padded(sequences: Ragged, device: torch.device) -> tuple[Tensor, Tensor]:
    """The sequences as int64 [B, longest], item 0 past their ends, and their lengths int64 [B]."""
    lengths = sequences.lengths
    items = np.zeros((len(sequences), int(lengths.max(initial=0))), dtype=np.int64)
    items[np.repeat(np.arange(len(lengths)), lengths), count_within(lengths)] = sequences.flat()
    return torch.from_numpy(items).to(device), torch.from_numpy(lengths.astype(np.int64)).to(device)
