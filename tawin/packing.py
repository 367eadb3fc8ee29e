"""Padded batches run without their padding: all but the attention sees one row of real tokens.

A decoder's matrix products do not care which sequence a token belongs to; its attention does. So the real tokens of a
batch [B, S] are laid end to end, [1, T], and the attention of each layer, which transformers lets us replace, puts
them back into [B, S] for PyTorch's sdpa and takes the real ones out again. Under the replaced attention a cache holds
padded keys and values, as all other code expects.

Columns that are the same tokens in every row, as the instruction before every prompt, are run once: they come first in
the row of real tokens, and every sequence attends to them. The last layer's MLP is run only where a hidden state is
wanted.

Models for which that goes wrong run padded, as they are (`packs`). Knows nothing of prompts, completions or trees.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from transformers import AttentionInterface, Cache, DynamicCache

from .attention_masks import causal, has_window, model_mask
from .backbone import Backbone, is_same_up_to_rounding
from .causal_attention import attending_by
from .policy import evaluating

_NAME = "tawin_packed"


class Packing:
    """Moves tensors between a padded batch [B, S, ...] and its T real tokens: those of the C first columns, which are
    the same in every row, then the others row after row. Differentiable."""

    def __init__(self, present: Tensor, common: int = 0) -> None:
        """present: bool [B, S], the places of real tokens; common: C, all of them present."""
        own = present[:, common:]
        places = own.flatten().nonzero()[:, 0]  # int64 [T - C]
        self.common = common
        self._shape = own.shape
        self._places = None if len(places) == own.numel() else places

    def pack(self, padded: Tensor) -> Tensor:
        """[B, S, ...] -> [T, ...]."""
        own = self.pack_own(padded[:, self.common :])
        return torch.cat((padded[0, : self.common], own)) if self.common else own

    def pack_own(self, padded: Tensor) -> Tensor:
        """[B, S - C, ...] -> [T - C, ...]."""
        flat = padded.flatten(0, 1)
        return flat if self._places is None else rows_at(flat, self._places)

    def unpack_own(self, packed: Tensor) -> Tensor:
        """[T - C, ...] -> [B, S - C, ...], zero where there is no token."""
        if self._places is not None:
            packed = rows_among(packed, self._places, self._shape.numel())
        return packed.unflatten(0, self._shape)


def rows_at(rows: Tensor, places: Tensor) -> Tensor:
    """rows[places] for places int64 [T] that are distinct: so the backward is a copy, not a sum."""
    return _RowsAt.apply(rows, places)


def rows_among(rows: Tensor, places: Tensor, total: int) -> Tensor:
    """The inverse of `rows_at`: `total` rows, these ones at their places and zeros elsewhere."""
    return _RowsAmong.apply(rows, places, total)


def _spread(rows: Tensor, places: Tensor, total: int) -> Tensor:
    return rows.new_zeros(total, *rows.shape[1:]).index_copy_(0, places, rows)


class _RowsAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.total = len(rows)
        return rows.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _spread(gradient, ctx.saved_tensors[0], ctx.total), None


class _RowsAmong(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, total: int) -> Tensor:
        ctx.save_for_backward(places)
        return _spread(rows, places, total)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient.index_select(0, places), None, None


def decoder_states(
    model: Backbone,
    input_ids: Tensor,
    positions: Tensor,
    present: Tensor,
    wanted: Tensor,
    mask: Any,
    cache: Cache | None = None,
    *,
    common: int = 0,
) -> Tensor:
    """Hidden states of a padded batch where they are wanted: [R, H], row after row of the batch.

    Args:
        input_ids, positions: int64 [B, S], any valid values where there is no token.
        present: bool [B, S], the real tokens.
        wanted: bool [B, S], some of them.
        mask: what `model_mask` gave for the queries [B, S - C] and all keys, those of the cache first.
            None: causal. Only where that is right: no common columns and no sliding window where the model `packs`, no
            padding where it does not.
        cache: keys and values [B, heads, P, D] that come before; it gets those of this batch too, padded.
        common: C, columns from the first on that are the same tokens in every row, none of them wanted, and see each
            other alone; for models that pack and have no sliding window.
    """
    if packs(model):
        return _packed_states(model, input_ids, positions, Packing(present, common), wanted, mask, cache)
    return _padded_states(model, input_ids, positions, wanted, mask, cache)


def _padded_states(
    model: Backbone, input_ids: Tensor, positions: Tensor, wanted: Tensor, mask: Any, cache: Cache | None = None
) -> Tensor:
    options = {} if cache is None else {model.cache_argument: cache}
    hidden = model.decoder(
        input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=cache is not None, **options
    ).last_hidden_state  # [B, S, H]
    return hidden[wanted]


def _packed_states(
    model: Backbone,
    input_ids: Tensor,
    positions: Tensor,
    packing: Packing,
    wanted: Tensor,
    mask: Any,
    cache: Cache | None = None,
) -> Tensor:
    rows = packing.pack(wanted).nonzero()[:, 0]  # int64 [R], among the T real tokens
    with _attending(_Run(model.config, packing, cache)), _last_mlp_at(model, rows):
        hidden = model.decoder(
            input_ids=packing.pack(input_ids)[None],
            attention_mask=mask,
            position_ids=packing.pack(positions)[None],
            use_cache=False,  # the attention below keeps it
        ).last_hidden_state[0]  # [T, H]
    return rows_at(hidden, rows)


@dataclass(frozen=True)
class _Run:
    config: Any
    packing: Packing
    cache: Cache | None


_run: ContextVar[_Run | None] = ContextVar("_run", default=None)


@contextmanager
def _attending(run: _Run) -> Iterator[None]:
    token = _run.set(run)
    try:
        with attending_by(run.config, _NAME):
            yield
    finally:
        _run.reset(token)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """What transformers calls: query [1, heads, T, D], key and value [1, kv_heads, T, D] -> [1, T, heads, D]."""
    run = _run.get()
    assert run is not None, "the packed attention was called outside of decoder_states"
    sdpa, common = AttentionInterface()["sdpa"], run.packing.common

    def own(states: Tensor) -> Tensor:
        return run.packing.unpack_own(states[0, :, common:].transpose(0, 1)).transpose(1, 2)  # [B, heads, S - C, D]

    def with_common(states: Tensor) -> Tensor:
        padded = own(states)
        if not common:
            return padded
        return torch.cat((states[:, :, :common].expand(len(padded), -1, -1, -1), padded), dim=2)  # [B, heads, S, D]

    keys, values = with_common(key), with_common(value)
    if run.cache is not None:
        layer: Any = module
        keys, values = run.cache.update(keys, values, layer.layer_idx)
    attended, _ = sdpa(module, own(query), keys, values, attention_mask, **options)  # [B, S - C, heads, D]
    packed = run.packing.pack_own(attended)
    if common:
        first, _ = sdpa(module, *(states[:, :, :common] for states in (query, key, value)), None, **options)
        packed = torch.cat((first[0], packed))
    return packed[None], None


AttentionInterface.register(_NAME, _attention)


def checkpoint_activations(model: Any) -> None:
    """Keep only the layers' inputs for the backward pass and run each layer again there: less memory, more FLOPs.

    transformers' own activation checkpointing, told to run a layer again with the attention that it first ran with.
    model: a transformers model, or a peft one.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    options = {"use_reentrant": False, "context_fn": _Contexts(inner.config.get_text_config(decoder=True))}
    if hasattr(inner, "activation_checkpointing_enable"):
        inner.activation_checkpointing_enable(options)
    else:  # transformers before 5.23
        inner.gradient_checkpointing_enable(options)
    # transformers hooks the embedding, for checkpoints that are reentrant; hooks would keep CUDA graphs away.
    inner.disable_input_require_grads()


@dataclass(frozen=True)
class _Contexts:
    """What torch's checkpoint asks for: contexts for the forward of a layer and for running it again."""

    config: Any

    def __call__(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        run = _run.get()
        again = attending_by(self.config, self.config._attn_implementation) if run is None else _attending(run)
        return nullcontext(), again


def packs(model: Backbone) -> bool:
    """Whether `decoder_states` runs this model without its padding; else it needs a mask wherever there is some.

    Padded run other attentions than sdpa, decoders that were seen to give other states packed (each is tried once: not
    all let transformers replace their attention), and layers whose activation checkpointing somebody else switched on:
    in the backward pass those would be run again with the model's own attention.
    """
    if model.config._attn_implementation != "sdpa":
        return False
    layer: Any
    for layer in model.decoder.modules():
        if getattr(layer, "gradient_checkpointing", False) and hasattr(layer, "_gradient_checkpointing_func"):
            options = getattr(layer._gradient_checkpointing_func, "keywords", {})
            if not isinstance(options.get("context_fn"), _Contexts):
                return False
    if model.decoder not in _tried:
        _tried[model.decoder] = _gives_the_same_states(model)
    return _tried[model.decoder]


# Decoders, and whether they gave the same states packed.
_tried: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


@torch.no_grad()
def _gives_the_same_states(model: Backbone) -> bool:
    """Rows of four tokens and three, the first one the same, packed and padded; wanted are their ends."""
    device = next(model.decoder.parameters()).device
    present = torch.tensor([[True, True, True, True], [True, True, True, False]], device=device)
    wanted = torch.tensor([[False, False, False, True], [False, False, True, False]], device=device)
    input_ids = torch.tensor([[1, 2, 3, 4], [1, 5, 6, 1]], device=device) % model.vocabulary
    positions = torch.arange(4, device=device).expand(2, -1)
    common = 0 if has_window(model.config) else 1
    masks = [
        model_mask(model.config, causal(present)[:, first:], positions[:, first:], positions, model.dtype)
        for first in (0, common)
    ]
    try:
        with evaluating(model.decoder), torch.autocast(device.type, enabled=False):
            expected = _padded_states(model, input_ids, positions, wanted, masks[0])
            cache = DynamicCache()
            packing = Packing(present, common)
            states = _packed_states(model, input_ids, positions, packing, wanted, masks[1], cache)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a decoder does not bear: it is run as it is
        warnings.warn(
            f"{type(model.decoder).__name__} runs with its padding: without it {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    if states.shape != expected.shape or cache.get_seq_length() != present.shape[1]:
        return False
    return is_same_up_to_rounding(states, expected)


@contextmanager
def _last_mlp_at(model: Backbone, rows: Tensor) -> Iterator[None]:
    """Within it the last layer's MLP runs only at `rows` int64 [R] of [1, T, H]; the other states mean nothing.

    Of the others the last layer's keys and values are wanted and nothing else. In a shallow decoder that is a good
    part of the work. Left alone: blocks that are no plain MLP, and activation checkpointing, which runs layers again
    later.
    """
    layer = getattr(model.decoder, "layers", [None])[-1]
    mlp: Any = getattr(layer, "mlp", None)
    if not type(mlp).__name__.endswith("MLP") or (getattr(layer, "gradient_checkpointing", False) and layer.training):
        yield
        return
    total = 0

    def before(_mlp: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        nonlocal total
        total = inputs[0].shape[1]
        return (rows_at(inputs[0][0], rows)[None],)

    def after(_mlp: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return rows_among(output[0], rows, total)[None]

    hooks = (mlp.register_forward_pre_hook(before), mlp.register_forward_hook(after))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
