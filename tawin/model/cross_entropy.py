"""The cross-entropy of training windows: SFT's loss, and the term of targets beside GRPO's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..catalog.catalog import Catalog
from ..catalog.encoding import IGNORED
from ..config import Config
from ..data.ragged import Ragged
from .attention.causal import causal_log_probs

FULL_SOFTMAX = 8192  # tokens of the catalogue over which the whole softmax is quick enough on a CPU


@dataclass(frozen=True)
class WindowBatch:
    """Training windows as a forward takes them."""

    input_ids: Tensor
    """int64 [B, S], right-padded"""
    attention_mask: Tensor
    """int64 [B, S]"""
    labels: Tensor
    """int64 [B, S], not shifted, -100 where there is no loss"""
    weights: Tensor | None = None
    """float32 [B, S], what each label's loss weighs; None: 1"""

    @classmethod
    def of(
        cls, catalog: Catalog, windows: Ragged, first_targets: np.ndarray, device: torch.device, *, counts: bool
    ) -> WindowBatch:
        """counts: whether the windows have a loss at all, or are run for company."""
        input_ids, attention_mask, labels = catalog.encode_windows(windows, first_targets)
        weights = catalog.label_weights(windows, first_targets, labels)
        labels = labels if counts else torch.full_like(labels, IGNORED)
        weights = None if weights is None else weights.to(device)
        return cls(input_ids.to(device), attention_mask.to(device), labels.to(device), weights)

    @property
    def total(self) -> Tensor:
        """What the batch adds to what a summed loss is divided by: labels, or the sum of their weights in fp64."""
        is_label = self.labels != IGNORED
        return is_label.sum() if self.weights is None else self.weights.double()[is_label].sum()


def window_loss(
    model: nn.Module, batch: WindowBatch, total: float, attention: str, negatives: int = 0
) -> tuple[Tensor]:
    """The cross-entropy of a batch over its labels, each by its weight, divided by `total`: a tuple of one."""
    _, log_probs = causal_log_probs(model, batch.input_ids, batch.attention_mask, batch.labels, attention, negatives)
    if batch.weights is not None:
        log_probs = log_probs * batch.weights[:, 1:]
    return (-log_probs.sum() / total,)


def sampled_negatives(catalog: Catalog, config: Config) -> int:
    """Tokens that estimate the softmax's sum in a step; 0: all. What `sft.negatives` says, or where it says nothing,
    1,024 for the small decoder over a vocabulary of more than `FULL_SOFTMAX` tokens."""
    if config.sft.negatives is not None:
        return config.sft.negatives
    return 1024 if config.model is None and len(catalog.trie.used_tokens) > FULL_SOFTMAX else 0
