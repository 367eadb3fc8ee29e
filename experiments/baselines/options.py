"""The options of a sequence model and of its training: what a row of a table may set.

The defaults were chosen on valid, for both models at once, on the toys and industrial catalogues with `negatives` at
1024, which takes far less time than the whole softmax on large catalogues.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

from tawin.config import KS

Loss = Literal["cross_entropy", "bce"]
SELECTIONS = tuple(f"{metric}@{k}" for metric in ("recall", "ndcg") for k in KS)


@dataclass(frozen=True)
class SequenceModelOptions:
    """ValueError or TypeError, by the option's name, for one that makes no sense."""

    hidden_size: int = 64
    """Width of the item embeddings and of the states."""
    layers: int = 1
    heads: int = 2
    """Attention heads, a divisor of hidden_size; SASRec only."""
    dropout: float = 0.3
    """On the embeddings and inside the layers, attention weights included."""
    learning_rate: float = 3e-3
    """AdamW's, constant."""
    weight_decay: float = 0.0
    """AdamW's, decoupled, on all weights."""
    batch_size: int = 128
    """Sequences a step."""
    epochs: int = 40
    """At most."""
    patience: int = 5
    """Training ends when this many epochs in a row did not improve on the best one."""
    max_history: int = 20
    """Most recent items that a state sees. Longer training sequences are cut into windows, none is left out."""
    loss: Loss = "cross_entropy"
    """"cross_entropy": a softmax over the items. "bce": SASRec's own, a logistic loss of the target and of one random
    item that the sequence does not hold."""
    negatives: int = 0
    """Items in the softmax beside the target, drawn anew a step, with an unbiased estimate of the whole sum; 0: all
    items, without an estimate. Cross-entropy only."""
    cooccurrence: bool = False
    """Whether item embeddings begin at the co-occurrence vectors that our own models begin at, or at random."""
    selection: str = "recall@10"
    """Which figure on valid says that an epoch is better: recall@K or ndcg@K of K = 1, 3, 5, 10."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "layers", "heads", "batch_size", "epochs", "patience", "max_history"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name}: expected an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        for name in ("dropout", "learning_rate", "weight_decay"):
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool):
                raise TypeError(f"{name}: expected a number, got {value!r}")
        if self.hidden_size % self.heads:
            raise ValueError(f"heads: expected a divisor of hidden_size {self.hidden_size}, got {self.heads}")
        if not isinstance(self.negatives, int) or isinstance(self.negatives, bool):
            raise TypeError(f"negatives: expected an integer, got {self.negatives!r}")
        if self.negatives < 0 or (self.negatives > 0 and self.loss == "bce"):
            raise ValueError(f"negatives: expected 0 or more, and 0 with loss='bce', got {self.negatives}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: expected a share in [0, 1), got {self.dropout}")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: expected a finite number above 0, got {self.learning_rate}")
        if not 0.0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: expected a finite number of 0 or more, got {self.weight_decay}")
        if self.loss not in get_args(Loss):
            raise ValueError(f"loss: expected one of {get_args(Loss)}, got {self.loss!r}")
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection: expected one of {SELECTIONS}, got {self.selection!r}")
