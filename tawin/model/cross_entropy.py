"""The cross-entropy of training windows: SFT's loss, and the term of targets beside GRPO's."""

from __future__ import annotations

from torch import Tensor, nn

from ..catalog.catalog import Catalog
from ..config import Config
from .attention.causal import causal_log_probs

FULL_SOFTMAX = 8192  # tokens of the catalogue over which the whole softmax is quick enough on a CPU


def window_loss(
    model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], tokens: float, attention: str, negatives: int = 0
) -> tuple[Tensor]:
    """The cross-entropy of a batch [B, S] over the labels that are not -100, divided by `tokens`: a tuple of one.

    batch: input_ids, attention_mask and labels, int64 [B, S], on the model's device.
    """
    input_ids, attention_mask, labels = batch
    _, log_probs = causal_log_probs(model, input_ids, attention_mask, labels, attention, negatives)
    return (-log_probs.sum() / tokens,)


def sampled_negatives(catalog: Catalog, config: Config) -> int:
    """Tokens that estimate the softmax's sum in a step; 0: all. What `sft.negatives` says, or where it says nothing,
    1,024 for the small decoder over a vocabulary of more than `FULL_SOFTMAX` tokens."""
    if config.sft.negatives is not None:
        return config.sft.negatives
    return 1024 if config.model is None and len(catalog.trie.used_tokens) > FULL_SOFTMAX else 0
