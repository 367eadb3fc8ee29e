"""GRU4Rec: a recurrent network over a user's items (Hidasi et al., ICLR 2016; Hidasi and Karatzoglou, CIKM 2018).

Item embeddings, dropout, GRU layers, scores by the same embeddings and a bias an item. Sequences are whole users, not
sessions in parallel mini-batches, and the loss sees all items rather than those of the mini-batch.
"""

from __future__ import annotations

from torch import Tensor, nn

from .options import SequenceModelOptions
from .sequence_model import SequenceModel


class GRU4Rec(SequenceModel):
    def __init__(self, num_items: int, options: SequenceModelOptions) -> None:
        super().__init__(num_items, options)
        width = options.hidden_size
        self.dropout = nn.Dropout(options.dropout)
        between = options.dropout if options.layers > 1 else 0.0  # torch warns of a dropout between one layer
        self.gru = nn.GRU(width, width, options.layers, batch_first=True, dropout=between)

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        states, _ = self.gru(self.dropout(self.items(items)))  # [B, L, H]
        return self.dropout(states)
