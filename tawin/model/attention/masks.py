"""Who sees whom, as transformers' decoders take it: 4-D masks, of full attention and of a sliding window.

Called wherever a decoder is run on prompts, trees or packed rows; knows configs of decoders alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LAYER_KINDS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "full_attention": lambda config, visible, distance: visible,
    "sliding_attention": lambda config, visible, distance: visible & (distance < config.sliding_window),
}
"""By the name in a config's `layer_types`: who sees whom in such a layer, bool [B, Q, K], from who sees whom in a layer
of full attention and from how far a key lies before a query, int64 [B, Q, K]. Models with other layers are refused."""


def causal(key_mask: Tensor) -> Tensor:
    """bool [B, P, P]: causal over real tokens; padding sees itself, so that no row of a softmax is empty."""
    length = key_mask.shape[1]
    ones = torch.ones(length, length, dtype=torch.bool, device=key_mask.device)
    return (ones.tril() & key_mask[:, None, :]) | torch.eye(length, dtype=torch.bool, device=key_mask.device)


def model_mask(config: Any, visible: Tensor, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype) -> Any:
    """What the decoder takes as attention_mask.

    Args:
        visible: bool [B, Q, K], who sees whom in a layer of full attention.
        query_positions, key_positions: int64 [B, Q] and [B, K]; a sliding window is a distance in these.
        dtype: of the additive mask that eager attention wants.

    Returns:
        A mask [B, 1, Q, K] (bool for sdpa, additive for eager), or a dict of them, one a layer type.
    """

    def finish(mask: Tensor) -> Tensor:
        mask = mask[:, None]  # [B, 1, Q, K]
        if config._attn_implementation == "sdpa":
            return mask
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)

    if not has_window(config):
        return finish(visible)
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    masks = {kind: finish(sees(config, visible, distance)) for kind, sees in LAYER_KINDS.items()}
    # Without layer types one mask is for all layers (Mistral).
    return masks if getattr(config, "layer_types", None) else masks["sliding_attention"]


def has_window(config: Any) -> bool:
    """Whether some layers see no further than a sliding window."""
    types = set(getattr(config, "layer_types", None) or ())
    return getattr(config, "sliding_window", None) is not None and types != {"full_attention"}


def full_attention_mask(config: Any, mask: Any) -> Tensor | None:
    """Of what `model_mask` gave: the mask of the layers of full attention, None where there are none."""
    if isinstance(mask, dict):
        return mask["full_attention"]
    return None if has_window(config) else mask
