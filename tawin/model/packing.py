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

import threading
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
from transformers import Cache, DynamicCache

from .attention.masks import causal, has_window, model_mask
from .attention.switch import attending, current, placeholder, require_asked, sdpa
from .backbone import Backbone
from .trial import is_random, is_same_up_to_rounding, undisturbed


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
    if packs(model, cached=cache is not None):
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
    attention = _PackedAttention(packing, cache, has_mask=mask is not None)
    tokens = packing.pack(input_ids)  # [T]
    with attending(attention), _last_mlp_at(model, rows, len(tokens)):
        hidden = model.decoder(
            input_ids=tokens[None],
            attention_mask=placeholder(input_ids.device) if mask is None else mask,
            position_ids=packing.pack(positions)[None],
            use_cache=False,  # the attention keeps it
        ).last_hidden_state[0]  # [T, H]
        require_asked(model.decoder)
    return rows_at(hidden, rows)


@dataclass(frozen=True)
class _PackedAttention:
    """Attention over the padded batch [B, S], for a decoder that is run on its real tokens [1, T]."""

    packing: Packing
    cache: Cache | None
    has_mask: bool
    """Else the decoder's mask is a placeholder, and attention is causal."""

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        """query [1, heads, T, D], key and value [1, kv_heads, T, D] -> [1, T, heads, D]."""
        packing, common = self.packing, self.packing.common

        def own(states: Tensor) -> Tensor:
            return packing.unpack_own(states[0, :, common:].transpose(0, 1)).transpose(1, 2)  # [B, heads, S - C, D]

        def with_common(states: Tensor) -> Tensor:
            padded = own(states)
            if not common:
                return padded
            return torch.cat((states[:, :, :common].expand(len(padded), -1, -1, -1), padded), dim=2)  # [B, heads, S, D]

        keys, values = with_common(key), with_common(value)
        if self.cache is not None:
            layer: Any = module
            keys, values = self.cache.update(keys, values, layer.layer_idx)
        mask = attention_mask if self.has_mask else None
        attended, _ = sdpa(module, own(query), keys, values, mask, **options)  # [B, S - C, heads, D]
        packed = packing.pack_own(attended)
        if common:
            first, _ = sdpa(module, *(states[:, :, :common] for states in (query, key, value)), None, **options)
            packed = torch.cat((first[0], packed))
        return packed[None], None


def checkpoint_activations(model: Any) -> None:
    """Keep only the layers' inputs for the backward pass and run each layer again there: less memory, more FLOPs.

    transformers' own activation checkpointing, told to run a layer again with the attention that it first ran with.
    model: a transformers model, or a peft one.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    options = {"use_reentrant": False, "context_fn": _contexts}
    if hasattr(inner, "activation_checkpointing_enable"):
        inner.activation_checkpointing_enable(options)
    else:  # transformers before 5.23
        inner.gradient_checkpointing_enable(options)
    # transformers hooks the embedding, for checkpoints that are reentrant; hooks would keep CUDA graphs away.
    inner.disable_input_require_grads()


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What torch's checkpoint asks for: contexts for the forward of a layer and for running it again."""
    return nullcontext(), attending(current())


def has_foreign_checkpoints(model: Backbone) -> bool:
    """Whether activation checkpointing was switched on by somebody else: in the backward pass layers would be run again
    with the model's own attention."""
    layer: Any
    for layer in model.decoder.modules():
        if getattr(layer, "gradient_checkpointing", False) and hasattr(layer, "_gradient_checkpointing_func"):
            options = getattr(layer._gradient_checkpointing_func, "keywords", {})
            if options.get("context_fn") is not _contexts:
                return True
    return False


def packs(model: Backbone, *, cached: bool = False) -> bool:
    """Whether `decoder_states` runs this model without its padding; else it needs a mask wherever there is some.

    cached: with a cache.

    Padded run other attentions than sdpa, decoders that were seen to give other states packed (each is tried once: not
    all let transformers replace their attention), and layers whose activation checkpointing somebody else switched on.
    With a cache also those that keep other keys and values than their attention sees, as MLA does.
    """
    if model.config._attn_implementation != "sdpa" or has_foreign_checkpoints(model):
        return False
    tried = _tried.get(model.decoder)
    if tried is None:
        tried = _try_packing(model)
        if tried.states or not is_random(model):
            _tried[model.decoder] = tried
    return tried.caches if cached else tried.states


@dataclass(frozen=True)
class _Tried:
    """What a decoder was seen to give packed as padded: the states, the cache too."""

    states: bool
    caches: bool


_tried: weakref.WeakKeyDictionary[nn.Module, _Tried] = weakref.WeakKeyDictionary()


@torch.no_grad()
def _try_packing(model: Backbone) -> _Tried:
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
    kept, cache = DynamicCache(), DynamicCache()
    try:
        with undisturbed(model.decoder):
            expected = _padded_states(model, input_ids, positions, wanted, masks[0], kept)
            runs = [(Packing(present, common), masks[1], cache)]
            if common:  # no window: a batch may come without a mask
                runs.append((Packing(present), None, None))
            found = [_packed_states(model, input_ids, positions, packing, wanted, *run) for packing, *run in runs]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a decoder does not bear: it is run as it is
        warnings.warn(
            f"{type(model.decoder).__name__} runs with its padding: without it {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return _Tried(False, False)
    states = all(is_same_up_to_rounding(ours, expected) for ours in found)
    return _Tried(states, states and _is_same_cache(cache, kept, present))


def _is_same_cache(ours: Cache, theirs: Cache, present: Tensor) -> bool:
    """Whether both hold the same keys and values [B, heads, S, D] of the tokens that are present, bool [B, S]."""
    if len(ours.layers) != len(theirs.layers):
        return False
    real = present[:, None, :, None]
    for our, their in zip(ours.layers, theirs.layers, strict=True):
        for own, other in ((our.keys, their.keys), (our.values, their.values)):
            if own.shape != other.shape or not is_same_up_to_rounding(own * real, other * real):
                return False
    return True


@dataclass(frozen=True)
class _Rows:
    """In a forward of this thread: the MLP that is run only at `rows` int64 [R] of [1, total, H]."""

    mlp: nn.Module
    rows: Tensor
    total: int


_rows: ContextVar[_Rows | None] = ContextVar("_rows", default=None)


@contextmanager
def _last_mlp_at(model: Backbone, rows: Tensor, total: int) -> Iterator[None]:
    """Within it the last layer's MLP runs only at `rows` int64 [R] of [1, total, H]; the other states mean nothing.

    Of the others the last layer's keys and values are wanted and nothing else. In a shallow decoder that is a good
    part of the work. Left alone: blocks that are no plain MLP, and activation checkpointing, which runs layers again
    later.
    """
    layer = getattr(model.decoder, "layers", [None])[-1]
    mlp: Any = getattr(layer, "mlp", None)
    if not type(mlp).__name__.endswith("MLP") or (getattr(layer, "gradient_checkpointing", False) and layer.training):
        yield
        return
    # Hooked once for good, as transformers hooks what it records: outside of this context, in every other thread, the
    # hooks do nothing.
    with _hooking:
        if take_rows not in mlp._forward_pre_hooks.values():
            mlp.register_forward_pre_hook(take_rows)
            mlp.register_forward_hook(put_rows_back)
    token = _rows.set(_Rows(mlp, rows, total))
    try:
        yield
    finally:
        _rows.reset(token)


_hooking = threading.Lock()


def take_rows(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor] | None:
    """The hook before the last layer's MLP: [1, T, H] -> [1, R, H] within `_last_mlp_at`."""
    if torch.compiler.is_compiling():  # Dynamo cannot trace a ContextVar, and what it compiles is no call of ours
        return None
    wanted = _rows.get()
    return None if wanted is None or wanted.mlp is not module else (rows_at(inputs[0][0], wanted.rows)[None],)


def put_rows_back(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    """The hook behind it: [1, R, H] -> [1, T, H]."""
    if torch.compiler.is_compiling():
        return None
    wanted = _rows.get()
    if wanted is None or wanted.mlp is not module:
        return None
    return rows_among(output[0], wanted.rows, wanted.total)[None]
