"""SASRec: causal self-attention over a user's items (Kang and McAuley, ICDM 2018).

Item and learned position embeddings, dropout, pre-norm blocks of causal attention and a feed-forward layer, a last
layer norm, scores by the item embeddings. Of the paper's own it differs in the feed-forward layer, which is four times
as wide as the states and GELU, as in the Transformer, and in a bias an item.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .options import SequenceModelOptions
from .sequence_model import SequenceModel


class SASRec(SequenceModel):
    def __init__(self, num_items: int, options: SequenceModelOptions) -> None:
        super().__init__(num_items, options)
        width = options.hidden_size
        self.positions = nn.Embedding(options.max_history, width)
        self.dropout = nn.Dropout(options.dropout)
        block = nn.TransformerEncoderLayer(
            width, options.heads, 4 * width, options.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, options.layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        nn.init.normal_(self.positions.weight, std=0.02)
        for parameter in self.blocks.parameters():
            if parameter.ndim > 1:  # drawn anew: torch makes the blocks as copies of one
                nn.init.xavier_uniform_(parameter)

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        length = items.shape[1]
        place = torch.arange(length, device=items.device)
        # Counted from the sequence's end, as the paper's left-padded sequences do: the last item, from which one
        # recommends, always has position 0. Padding stands behind every item that could attend to it.
        positions = (lengths[:, None] - 1 - place).clamp(min=0)  # [B, L]
        states = self.dropout(self.items(items) + self.positions(positions))  # [B, L, H]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=items.device)
        return self.blocks(states, mask=mask, is_causal=True)
