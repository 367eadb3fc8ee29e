"""The plain causal forward, and which attention it runs: sdpa, or FlashAttention 2 where a run asks for it.

A forward that is told who sees whom by a 4-D mask (rollouts, evaluation, the policy's forward over groups) runs sdpa
always: FlashAttention takes no such mask. Supervised fine-tuning has sequences that are causal but for their padding;
its forward is what `--attention flash_attention_2` is about. Knows nothing of prompts, items or losses.
"""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import torch
from tawin_kernels import linear_log_probs
from torch import Tensor, nn
from transformers import AttentionInterface

from ...catalog.encoding import IGNORED
from ..backbone import Backbone, backbone
from ..packing import has_foreign_checkpoints
from ..sampled_softmax import sampled_log_probs
from .switch import attending, placeholder, require_asked

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


class _NamedAttention:
    """An attention that transformers knows, for one forward of a decoder whose config names another one."""

    def __init__(self, name: str, config: Any, padding: Tensor | None) -> None:
        """padding: int64 [B, S], 0 = padding; None: there is none."""
        self._name = name
        self._config = _Renamed(config, name)
        self._padding = padding

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> tuple[Tensor, Any]:
        named: Any = copy.copy(module)  # transformers' function reads the name from the layer's config
        named.config = self._config
        return AttentionInterface()[self._name](named, query, key, value, self._padding, **options)


class _Renamed:
    """A config as it is, but for the name of its attention."""

    def __init__(self, config: Any, name: str) -> None:
        self._config = config
        self._attn_implementation = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def causal_log_probs(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, attention: str, negatives: int = 0
) -> tuple[Tensor, Tensor]:
    """Hidden states [B, S, H], and log p of each label but the first, [B, S - 1], 0 where it is -100.

    input_ids, attention_mask, labels: int64 [B, S], right-padded; labels are not shifted.
    negatives: so many tokens of the vocabulary estimate the softmax's sum; 0, or no fewer than it has: all of them.
    """
    parts = backbone(model)
    if attention == "sdpa":  # as the model is: sdpa, or the eager attention of one that was loaded with it
        hidden = parts.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    else:
        hidden = _states_by(attention, parts, input_ids, attention_mask)  # [B, S, H]
    if not 0 < negatives < parts.vocabulary:
        weight, bias = parts.head_in(hidden.dtype)
        return hidden, linear_log_probs(hidden[:, :-1], weight, labels[:, 1:], bias=bias)
    weight, bias = parts.head_in(torch.float32)
    rows, places = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    log_probs = sampled_log_probs(hidden[rows, places].float(), weight, bias, labels[rows, places + 1], negatives)
    return hidden, log_probs.new_zeros(len(labels), labels.shape[1] - 1).index_put((rows, places), log_probs)


def _states_by(attention: str, model: Backbone, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    if has_foreign_checkpoints(model):
        raise ValueError(
            f"attention: {attention!r} needs activation checkpointing as `checkpoint_activations` switches it on: by "
            "another one layers are run again with the model's own attention"
        )
    padding = None if bool(attention_mask.all()) else attention_mask
    with attending(_NamedAttention(attention, model.config, padding)):
        hidden = model.decoder(
            input_ids=input_ids, attention_mask=placeholder(input_ids.device), use_cache=False
        ).last_hidden_state
        require_asked(model.decoder)
    return hidden
