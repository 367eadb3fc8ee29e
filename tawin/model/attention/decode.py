"""Attention of a decode step: the beams of a prompt read its keys and values once, not once a beam or head.

Two ways give the same result:

* "mask": transformers' sdpa with the 4-D mask over all keys. The beams are its queries, so keys are stored once a
  prompt. But with a mask sdpa takes no grouped heads: transformers writes every key and value out again once a query
  head, layer by layer and step by step, and the kernel reads a mask value for each of (head, beam, key).
* "split": the query heads of a group and the beams are folded into one query length, so that the keys are read as they
  are stored. What the prompt's keys need is one bias a key (its padding), shared by all rows, or none. The few
  appended keys are a second attention with the ancestors as its mask; the two are merged by their logsumexp in fp32.

`decode_attention` chooses by device and shape. A layer is split only where it was handed the very mask of full
attention: sliding windows, soft caps, attention sinks and dropout stay with sdpa. Knows nothing of beams' scores,
caches or items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .switch import sdpa

DecodeAttention = Literal["mask", "split"]

# Bytes of one layer and step that the split must save. It takes about five kernels more, 2 us each, and in 10 us an
# H100 reads 32 MiB. A prediction: `python -m bench.bench_decode_attention` measures it on a GPU; not measured yet.
MIN_SAVED_BYTES = 32 * 2**20

# Options of an attention layer that change its scores: such a layer is left to sdpa, which knows or refuses them.
_SCORE_OPTIONS = ("position_bias", "s_aux", "sinks", "softcap", "sliding_window")


@dataclass(frozen=True)
class DecodeShape:
    """Sizes of the attention of one layer at one decode step."""

    batch: int
    beam_width: int
    heads: int
    kv_heads: int
    prompt_keys: int
    suffix_keys: int
    head_dim: int
    itemsize: int
    """Bytes of an element of the keys."""

    def moved_bytes(self, way: DecodeAttention) -> int:
        """Bytes that the kernels read and write in the keys, the values and the mask."""
        keys = self.prompt_keys + self.suffix_keys
        stored = 2 * self.batch * self.kv_heads * keys * self.head_dim * self.itemsize
        groups = self.heads // self.kv_heads
        if way == "split":  # one bias a prompt key, one a (row, appended key); a key head reads them
            rows = groups * self.beam_width
            biases = self.batch * self.kv_heads * (self.prompt_keys + rows * self.suffix_keys) * self.itemsize
            return stored + biases
        mask = self.batch * self.heads * self.beam_width * keys * self.itemsize
        return mask + (stored if groups == 1 else stored + 2 * groups * stored)  # read once, written and read per head


def decode_attention(device: torch.device, shape: DecodeShape) -> DecodeAttention:
    """The faster way, by rule: on CUDA "split" where it saves MIN_SAVED_BYTES; elsewhere "mask"."""
    if (
        device.type != "cuda"
        or torch.version.hip is not None
        or shape.head_dim % 8 != 0
        or shape.heads % shape.kv_heads != 0
    ):
        return "mask"
    saved = shape.moved_bytes("mask") - shape.moved_bytes("split")
    return "split" if saved >= MIN_SAVED_BYTES else "mask"


class SharedPrompt:
    """The attention of one decode step (`switch.Attention`), and what its layers share: the mask of full
    attention, and its two parts as biases."""

    def __init__(self, mask: Tensor, prompt_keys: int, is_padded: bool, way: DecodeAttention | None) -> None:
        """mask bool [B, 1, W, P + S]; is_padded: whether some prompt key is hidden; way None: chosen by the rule."""
        self.mask = mask
        self.prompt_keys = prompt_keys
        self.way = way
        self._is_padded = is_padded
        self._biases: dict[tuple[int, torch.dtype], tuple[Tensor | None, Tensor]] = {}

    def biases(self, groups: int, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        """Additive, [B, 1, 1, P] (None without padding) and [B, 1, groups * W, S]; made once a step."""
        if (groups, dtype) not in self._biases:
            # All beams see the same prompt keys: the first one's row is everybody's.
            prompt = _additive(self.mask[:, :, :1, : self.prompt_keys], dtype) if self._is_padded else None
            suffix = self.mask[..., self.prompt_keys :].repeat(1, 1, groups, 1)
            self._biases[groups, dtype] = prompt, _additive(suffix, dtype)
        return self._biases[groups, dtype]

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        scaling: float | None = None,
        dropout: float = 0.0,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """query [B, heads, W, D], key and value [B, kv_heads, P + S, D] -> [B, W, heads, D]."""
        if (
            attention_mask is not self.mask
            or dropout > 0.0
            or value.shape[-1] != query.shape[-1]  # MLA; the kernels of the split take one head size
            or any(options.get(name) is not None for name in _SCORE_OPTIONS)
            or (self.way or decode_attention(query.device, _shape_of(query, key, self.prompt_keys))) == "mask"
        ):
            return sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options)
        return split_attention(query, key, value, self, scaling), None


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, else -inf; rows begin at multiples of 16 elements, as the memory-efficient kernel wants them."""
    keys = visible.shape[-1]
    room = torch.zeros_like(pad(visible, (0, -keys % 16)), dtype=dtype)[..., :keys]
    return room.masked_fill_(~visible, -torch.inf)


def _shape_of(query: Tensor, key: Tensor, prompt_keys: int) -> DecodeShape:
    batch, heads, width, head_dim = query.shape
    keys = key.shape[2]
    return DecodeShape(
        batch, width, heads, key.shape[1], prompt_keys, keys - prompt_keys, head_dim, query.element_size()
    )


def split_attention(query: Tensor, key: Tensor, value: Tensor, step: SharedPrompt, scaling: float | None) -> Tensor:
    """The "split" way: query [B, heads, W, D], key and value [B, kv_heads, P + S, D] -> [B, W, heads, D].

    In an autocast region the operands take its dtype, as sdpa's do.
    """
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    batch, heads, width, head_dim = query.shape
    kv_heads = key.shape[1]
    groups, border = heads // kv_heads, step.prompt_keys
    rows = query.to(dtype).reshape(batch, kv_heads, groups * width, head_dim)
    key, value = key.to(dtype), value.to(dtype)
    prompt_bias, suffix_bias = step.biases(groups, dtype)
    before, before_weight = attention_and_logsumexp(
        rows, key[:, :, :border], value[:, :, :border], prompt_bias, scaling
    )
    after, after_weight = attention_and_logsumexp(rows, key[:, :, border:], value[:, :, border:], suffix_bias, scaling)
    # e^a / (e^a + e^b) = sigmoid(a - b), [B, kv_heads, groups * W, 1]
    share = torch.sigmoid(before_weight.float() - after_weight.float())[..., None]
    merged = torch.lerp(after.float(), before.float(), share).to(dtype)
    return merged.reshape(batch, heads, width, head_dim).transpose(1, 2).contiguous()


def attention_and_logsumexp(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float | None
) -> tuple[Tensor, Tensor]:
    """Attention [B, heads, rows, D] and the logsumexp of its scores, fp32 [B, heads, rows], by PyTorch's own kernel.

    query [B, heads, rows, D], key and value [B, heads, keys, D], bias [B, 1, rows or 1, keys] or None.
    """
    rows = query.shape[2]
    if bias is not None:
        bias = bias.expand(-1, query.shape[1], rows, -1)
    if query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=bias, scale=scaling
        )
    attended, logsumexp, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, 0.0, False, scale=scaling
    )
    return attended, logsumexp[..., :rows]  # the kernel rounds the rows up
