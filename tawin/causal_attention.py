"""The plain causal forward, and which attention it runs: sdpa, or FlashAttention 2 where a run asks for it.

A forward that is told who sees whom by a 4-D mask (rollouts, evaluation, the policy's forward over groups) runs sdpa
always: FlashAttention takes no such mask. Supervised fine-tuning has sequences that are causal but for their padding;
its forward is what `--attention flash_attention_2` is about. Knows nothing of prompts, items or losses.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tawin_kernels import linear_log_probs
from torch import Tensor, nn

from .backbone import backbone
from .encoding import IGNORED
from .sampled_softmax import sampled_log_probs

SMALLEST_CAPABILITY = (8, 0)  # of a GPU that FlashAttention 2 runs on


def require_attention(attention: str) -> None:
    """Refuse an attention that this machine has not; the message says what it lacks and what to install."""
    if attention == "sdpa":
        return
    missing = []
    if not torch.cuda.is_available():
        missing.append("a CUDA device")
    elif torch.cuda.get_device_capability() < SMALLEST_CAPABILITY:
        missing.append(f"a GPU of compute capability 8.0 or more (this one has {torch.cuda.get_device_capability()})")
    if importlib.util.find_spec("flash_attn") is None:
        missing.append("flash-attn (pip install flash-attn --no-build-isolation)")
    if missing:
        raise ValueError(f"attention: {attention!r} needs {' and '.join(missing)}: get that, or use --attention sdpa")


def require_model_takes(model: Any, attention: str) -> None:
    """Refuse a model that transformers cannot run with this attention."""
    if attention != "sdpa" and not getattr(model, "_supports_flash_attn", False):
        raise ValueError(
            f"attention: expected 'sdpa' for {type(model).__name__}, which transformers does not run with "
            f"FlashAttention, got {attention!r}"
        )


@contextmanager
def attending_by(config: Any, attention: str) -> Iterator[None]:
    """Within it the decoder of `config` runs this implementation of attention, a name that transformers knows."""
    before = config._attn_implementation
    config._attn_implementation = attention
    try:
        yield
    finally:
        config._attn_implementation = before


def causal_log_probs(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, attention: str, negatives: int = 0
) -> tuple[Tensor, Tensor]:
    """Hidden states [B, S, H], and log p of each label but the first, [B, S - 1], 0 where it is -100.

    input_ids, attention_mask, labels: int64 [B, S], right-padded; labels are not shifted.
    negatives: so many tokens of the vocabulary estimate the softmax's sum; 0, or no fewer than it has: all of them.
    """
    parts = backbone(model)
    with attending_by(parts.config, attention):
        hidden = parts.decoder(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state  # [B, S, H]
    if not 0 < negatives < parts.vocabulary:
        weight, bias = parts.head_in(hidden.dtype)
        return hidden, linear_log_probs(hidden[:, :-1], weight, labels[:, 1:], bias=bias)
    weight, bias = parts.head_in(torch.float32)
    rows, places = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    log_probs = sampled_log_probs(hidden[rows, places].float(), weight, bias, labels[rows, places + 1], negatives)
    return hidden, log_probs.new_zeros(len(labels), labels.shape[1] - 1).index_put((rows, places), log_probs)
