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

_CACHE_ARGUMENTS = ("cache", "past_key_values")  # transformers from 5.24 on, and before
_LAYER_TYPES = ("full_attention", "sliding_attention")
# Options by which some decoders change their logits after the LM head. log_softmax(hidden @ weight.T) would be wrong
# there.
_HEAD_OPTIONS = ("final_logit_softcapping", "logits_soft_cap", "logit_scale", "logits_scaling", "lm_head_multiplier")


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
    given by position ids, heads that do more than hidden @ weight.T + bias. The head is tried out once a model.
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
    other = sorted(set(getattr(config, "layer_types", None) or ()) - set(_LAYER_TYPES))
    if other:
        raise ValueError(f"model {name}: layer types {other} have no shared-prefix mask; expected {_LAYER_TYPES}")
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
    parts = Backbone(decoder, head, config, cache_argument)
    if causal_lm not in _TRIED_HEADS:
        _try_head(causal_lm, parts)
        _TRIED_HEADS.add(causal_lm)
    return parts


# Models whose logits were seen to be hidden @ weight.T + bias.
_TRIED_HEADS: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@torch.no_grad()
def _try_head(causal_lm: Any, parts: Backbone) -> None:
    """Refuse a model whose logits are not hidden @ weight.T + bias: every log-prob here would be wrong."""
    device = _unwrap_head(parts.head).weight.device
    # Not token 0: it is often the padding, whose embedding, hidden state and logits are all zero.
    input_ids = torch.arange(1, min(5, parts.vocabulary), device=device)[None]
    hidden: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        # A forward that accelerate prepared has an autocast region of its own, in which the head's product is taken.
        is_cast = torch.is_autocast_enabled(device.type)
        hidden.append(output[0].to(torch.get_autocast_dtype(device.type)) if is_cast else output[0])

    hook = parts.decoder.register_forward_hook(keep)
    try:
        # The random state is put back: dropout must not depend on when a model is tried.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            logits = causal_lm(input_ids=input_ids, use_cache=False).logits
    finally:
        hook.remove()
    weight, bias = parts.head_in(hidden[0].dtype)
    expected = nn.functional.linear(hidden[0], weight, bias)
    if not is_same_up_to_rounding(expected, logits):
        raise ValueError(
            f"model {type(causal_lm).__name__}: its logits are not hidden @ lm_head.T (largest difference "
            f"{float((expected - logits).abs().max()):.3g}); such heads are not supported"
        )


def is_same_up_to_rounding(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two ways through a model gave the same, as far as one can ask of their dtypes.

    A broken model gives NaN both ways: that is for whoever reads its scores.
    """
    tolerance = 1e-3 if ours.dtype == theirs.dtype == torch.float32 else 5e-2
    scale = max(1.0, float(theirs[theirs.isfinite()].abs().amax())) if theirs.isfinite().any() else 1.0
    return torch.allclose(ours.float(), theirs.float(), rtol=0.0, atol=tolerance * scale, equal_nan=True)


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
