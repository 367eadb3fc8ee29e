"""A causal LM taken apart into decoder and LM head; models for which that goes wrong are refused by name.

Knows transformers and peft. Knows nothing of prompts, beams or losses.
"""

from __future__ import annotations

import inspect
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attention.masks import LAYER_KINDS, has_window
from .attention.switch import install
from .trial import try_head, try_tree

_CACHE_ARGUMENTS = ("cache", "past_key_values")  # transformers from 5.24 on, and before
# Options by which some decoders change their logits after the LM head. log_softmax(hidden @ weight.T) would be wrong
# there.
_HEAD_OPTIONS = ("final_logit_softcapping", "logits_soft_cap", "logit_scale", "logits_scaling", "lm_head_multiplier")

# By `model_type`: these hand their window to FlashAttention and leave it out of the mask that sdpa and eager get.
_WINDOW_OF_FLASH_ALONE = ("moshi",)


@dataclass(frozen=True)
class Backbone:
    """A causal LM taken apart: `decoder` gives hidden states, `head` the output embedding that follows them."""

    decoder: nn.Module
    head: nn.Module
    config: Any  # the text config of the decoder
    cache_argument: str  # what the decoder calls its cache

    @property
    def weight(self) -> Tensor:
        """LM-head weight [V, H] as it takes part in the forward: adapters included, differentiable."""
        return _effective_weight(self.head)

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the weights; unlike `weight` it builds no merged [V, H] matrix."""
        return _unwrap_head(self.head).weight.dtype

    @property
    def vocabulary(self) -> int:
        """Tokens that the head knows, V."""
        return len(_unwrap_head(self.head).weight)

    @property
    def bias(self) -> Tensor | None:
        """LM-head bias [V], or None."""
        return getattr(_unwrap_head(self.head), "bias", None)

    def head_in(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Weight and bias in the dtype of the hidden states that they meet."""
        return self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)


def backbone(model: Any) -> Backbone:
    """Take a causal LM apart (peft models included).

    Raises ValueError by name for what shared-prefix attention or a plain softmax head would get wrong: attention
    implementations without a 4-D mask, layers that are neither full nor sliding attention, positions that are not
    given by position ids, heads that do more than hidden @ weight.T + bias. Head, prefill and decode are tried out once
    per model (`trial`).
    """
    causal_lm: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft lives inside it
    if not hasattr(causal_lm, "get_output_embeddings"):
        raise TypeError(f"model: expected a transformers causal LM, got {type(causal_lm).__name__}")
    config = causal_lm.config.get_text_config(decoder=True)
    name = type(causal_lm).__name__
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"model {name}: attention implementation {config._attn_implementation!r} takes no 4-D mask; "
            "expected 'sdpa' or 'eager' (pass attn_implementation='sdpa' to from_pretrained)"
        )
    install()
    other = sorted(set(getattr(config, "layer_types", None) or ()) - set(LAYER_KINDS))
    if other:
        raise ValueError(f"model {name}: layer types {other} have no shared-prefix mask; expected {tuple(LAYER_KINDS)}")
    if config.model_type in _WINDOW_OF_FLASH_ALONE and has_window(config):
        raise ValueError(
            f"model {name}: its sliding window of {config.sliding_window} is FlashAttention's alone, which takes no "
            "4-D mask; not supported"
        )
    decoder = causal_lm.get_decoder()
    parameters = inspect.signature(decoder.forward).parameters
    cache_argument = next((argument for argument in _CACHE_ARGUMENTS if argument in parameters), None)
    own_positions = getattr(config, "alibi", False) or "local" in (getattr(config, "attention_layers", None) or ())
    if cache_argument is None or not {"position_ids", "attention_mask"} <= set(parameters) or own_positions:
        raise ValueError(
            f"model {name}: its attention does not follow a 4-D mask and position ids (alibi, a local window of its "
            "own, or a decoder that takes none); not supported"
        )
    for option in _HEAD_OPTIONS:
        value = getattr(config, option, None)
        if value is not None and value != 1:
            raise ValueError(f"model {name}: {option} = {value} changes the logits after the LM head; not supported")
    head = causal_lm.get_output_embeddings()
    if head is None:
        raise ValueError(f"model {name}: expected a causal LM with an LM head, got none")
    weight = getattr(_unwrap_head(head), "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise ValueError(
            f"model {name}: expected an LM head with a weight [V, H], got {type(head).__name__}; not supported"
        )
    parts = Backbone(decoder, head, config, cache_argument)
    if causal_lm not in _TRIED:
        try_head(causal_lm, parts)
        if try_tree(causal_lm, parts):
            _TRIED.add(causal_lm)
    return parts


# Models that passed their trials.
_TRIED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _unwrap_head(head: Any) -> Any:
    """The module that holds the head's own weight and bias, below peft's wrappers."""
    while True:
        if hasattr(head, "modules_to_save"):  # peft.utils.ModulesToSaveWrapper
            adapters = [] if head.disable_adapters else head.active_adapters
            head = head.modules_to_save[adapters[0]] if adapters else head.original_module
        elif hasattr(head, "token_adapter"):  # peft.utils.TrainableTokensWrapper
            head = head.original_module
        elif hasattr(head, "base_layer"):  # a LoRA layer
            head = head.base_layer
        else:
            return head


def _effective_weight(head: Any) -> Tensor:
    weight = _unwrap_head(head).weight
    adapter = getattr(head, "token_adapter", None)
    if adapter is not None:
        active = [] if adapter.disable_adapters else adapter.active_adapters
        return adapter.get_merged_weights(active) if active else weight
    if hasattr(head, "lora_A") and not head.disable_adapters:
        for name in head.active_adapters:
            if name in head.lora_A:
                weight = weight + head.get_delta_weight(name)
    return weight
