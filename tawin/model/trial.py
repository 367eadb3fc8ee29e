"""Trials of a causal LM before it is used: what it would get wrong in silence later is refused by name.

Each runs the model on a few tokens and leaves it as it was, its mode and its hooks as other threads see them included.
Called by `backbone`, once a model; `packing` tries its own way of running a decoder by the same means.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache

from .attention.masks import causal, model_mask

if TYPE_CHECKING:
    from .backbone import Backbone

_DROPOUTS = {
    nn.functional.dropout,
    nn.functional.dropout1d,
    nn.functional.dropout2d,
    nn.functional.dropout3d,
    nn.functional.alpha_dropout,
    nn.functional.feature_alpha_dropout,
    torch.dropout,
}


class _WithoutDropout(TorchFunctionMode):
    """Dropout is the identity, in this thread alone; `eval()` would be another thread's too."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if function is nn.functional.scaled_dot_product_attention and "dropout_p" in kwargs:
            kwargs = {**kwargs, "dropout_p": 0.0}
        return function(*args, **kwargs)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Within it a module in train mode gives what it gives in eval mode, in the dtype of its weights, and no random
    number is used up."""
    device = next(module.parameters()).device
    is_training = any(part.training for part in module.modules())
    devices = [device] if device.type == "cuda" else []
    with (
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(devices=devices, enabled=is_training),
        _WithoutDropout(),
    ):
        yield


_states: ContextVar[list[Tensor] | None] = ContextVar("_states", default=None)


def keep_states(module: nn.Module, _inputs: Any, output: Any) -> None:
    """The hook on the decoder during a trial of the head; a forward of another thread goes by it."""
    kept = _states.get()
    if kept is None:
        return
    # A forward that accelerate prepared has an autocast region of its own, in which the head's product is taken.
    device = output[0].device.type
    is_cast = torch.is_autocast_enabled(device)
    kept.append(output[0].to(torch.get_autocast_dtype(device)) if is_cast else output[0])


def try_head(causal_lm: Any, parts: Backbone) -> None:
    """ValueError for a model whose logits are not hidden @ weight.T + bias: every log-prob here would be wrong."""
    name = type(causal_lm).__name__
    hidden: list[Tensor] = []
    hook = parts.decoder.register_forward_hook(keep_states)
    token = _states.set(hidden)
    try:
        with undisturbed(causal_lm), _named(name, "its forward on four tokens fails"):
            logits = causal_lm(input_ids=_tokens(parts, 4)[None], use_cache=False).logits
    finally:
        _states.reset(token)
        hook.remove()
    weight, bias = parts.head_in(hidden[0].dtype)
    if hidden[0].shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"model {name}: its LM head takes {weight.shape[-1]} numbers a token, its decoder gives "
            f"{hidden[0].shape[-1]}; such heads are not supported"
        )
    with torch.no_grad():
        expected = nn.functional.linear(hidden[0], weight, bias)
    if not is_same_up_to_rounding(expected, logits):
        raise ValueError(
            f"model {name}: its logits are not hidden @ lm_head.T (largest difference "
            f"{float((expected - logits).abs().max()):.3g}); such heads are not supported"
        )


def try_tree(causal_lm: Any, parts: Backbone) -> bool:
    """ValueError for a decoder that gives other states for prompts and appended beams than for each sequence alone.

    Two prompts, one of them padded, with two beams each, of two tokens; the second ones change parents. That is what
    `prefill` and `BeamTree.append` do, in the decoder's own way.

    False: not known yet, as the decoder keeps no cache now (activation checkpointing in train mode does that, and a
    prefill says so), is random, or is broken: a NaN of one token goes into the states of all that share its mask, and
    is for whoever reads the scores.
    """
    name = type(causal_lm).__name__
    with (
        undisturbed(parts.decoder),
        _named(name, "it does not take a prompt and, appended to its cache, beams under a 4-D mask"),
    ):
        found = _tree_states(parts)
        if found is None:
            return False
        expected = _states_alone(parts)
    if not expected.isfinite().all():
        return False
    if not _is_mostly_same(found, expected):
        if is_random(parts):
            return False
        raise ValueError(
            f"model {name}: under a 4-D mask and position ids it gives other states than for each sequence alone "
            f"(largest difference {float((found - expected).abs().max()):.3g}): it does not follow them, or sees later "
            "tokens; not supported"
        )
    return True


@torch.no_grad()
def is_random(parts: Backbone) -> bool:
    """Whether the decoder gives other states each time, in train mode by more than dropout: NEFTune, a jittered router,
    layers that are left out. There is nothing to learn from a trial then."""
    if not any(part.training for part in parts.decoder.modules()):
        return False
    with undisturbed(parts.decoder):
        first, second = (_states_alone(parts) for _ in range(2))
    return not is_same_up_to_rounding(first, second)


@contextmanager
def _named(model: str, problem: str) -> Iterator[None]:
    """What a model raises within it becomes a ValueError that names the model."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model does not bear
        raise ValueError(f"model {model}: {problem} ({type(error).__name__}: {error}); not supported") from error


_LENGTHS, _WIDTH, _PARENTS = (6, 4), 2, (1, 0)


def _tokens(parts: Backbone, count: int) -> Tensor:
    """int64 [count]. Not token 0: it is often the padding, whose embedding, hidden state and logits are all zero."""
    device = next(parts.decoder.parameters()).device
    return torch.arange(count, device=device) % max(1, parts.vocabulary - 1) + min(1, parts.vocabulary - 1)


def _trial_tokens(parts: Backbone) -> tuple[Tensor, Tensor]:
    """Prompts int64 [2, 6], the second one of 4 tokens, and beams' tokens int64 [2 levels, 2, 2]."""
    tokens = _tokens(parts, 2 * max(_LENGTHS) + 8)
    return tokens[: 2 * max(_LENGTHS)].view(2, -1), tokens[2 * max(_LENGTHS) :].view(2, 2, _WIDTH)


def _tree_states(parts: Backbone) -> Tensor | None:
    """Of each prompt's end and the beams after it, [2, 1 + 2 + 2, H]. None: the decoder keeps no cache."""
    prompts, beams = _trial_tokens(parts)
    device, length = prompts.device, prompts.shape[1]
    lengths = torch.tensor(_LENGTHS, device=device)
    positions = torch.arange(length, device=device).expand(2, -1)
    key_mask = positions < lengths[:, None]
    cache = DynamicCache()

    def run(input_ids: Tensor, visible: Tensor, own: Tensor, keys: Tensor) -> Tensor:
        mask = model_mask(parts.config, visible, own, keys, parts.dtype)
        options = {parts.cache_argument: cache}
        return parts.decoder(
            input_ids=input_ids, attention_mask=mask, position_ids=own, use_cache=True, **options
        ).last_hidden_state

    hidden = run(prompts, causal(key_mask), positions, positions)
    if cache.get_seq_length() != length:
        return None
    states = [hidden[torch.arange(2, device=device), lengths - 1][:, None]]
    itself = torch.eye(_WIDTH, dtype=torch.bool, device=device)
    ancestors, keys = itself[:, :0], positions
    for depth, tokens in enumerate(beams):
        if depth > 0:
            ancestors = ancestors[list(_PARENTS)]
        ancestors = torch.cat((ancestors, itself), dim=1)  # [W, appended]
        own = (lengths + depth)[:, None].expand(-1, _WIDTH)
        keys = torch.cat((keys, own), dim=1)
        seen = key_mask[:, None].expand(-1, _WIDTH, -1), ancestors.expand(2, -1, -1)
        states.append(run(tokens, torch.cat(seen, dim=2), own, keys))
    return torch.cat(states, dim=1)


def _states_alone(parts: Backbone) -> Tensor:
    """The same states, each from a forward of its sequence alone."""
    prompts, beams = _trial_tokens(parts)
    rows = []
    for prompt, length, first, second in zip(prompts, _LENGTHS, beams[0], beams[1], strict=True):
        sequences = torch.cat((prompt[:length].expand(_WIDTH, -1), first[list(_PARENTS)][:, None], second[:, None]), 1)
        hidden = parts.decoder(input_ids=sequences, use_cache=False).last_hidden_state[:, length - 1 :]  # [W, 3, H]
        rows.append(torch.cat((hidden[:1, 0], hidden[list(_PARENTS), 1], hidden[:, 2])))
    return torch.stack(rows)


def is_same_up_to_rounding(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two ways through a model gave the same, as far as one can ask of their dtypes.

    A broken model gives NaN both ways: that is for whoever reads its scores.
    """
    return bool(_is_close(ours, theirs).all())


def _is_mostly_same(ours: Tensor, theirs: Tensor) -> bool:
    """Of states [..., H]. In half precision a rounding may send a token to another expert, which changes its state:
    there it is enough that most states are the same."""
    is_close = _is_close(ours, theirs).all(-1)
    return bool(is_close.all() if _is_precise(ours, theirs) else is_close.float().mean() > 0.5)


def _is_precise(ours: Tensor, theirs: Tensor) -> bool:
    return ours.dtype == theirs.dtype and ours.dtype in (torch.float32, torch.float64)


def _is_close(ours: Tensor, theirs: Tensor) -> Tensor:
    tolerance = 1e-3 if _is_precise(ours, theirs) else 5e-2
    scale = max(1.0, float(theirs[theirs.isfinite()].abs().amax())) if theirs.isfinite().any() else 1.0
    return torch.isclose(ours.float(), theirs.float(), rtol=0.0, atol=tolerance * scale, equal_nan=True)
