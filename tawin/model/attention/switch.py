"""Which attention a forward runs, chosen per call: nothing of the call is written into the model.

A layer of transformers looks its attention up in a registry, under the name in its config. From the first model on that
`backbone` takes apart, "sdpa" there is `_dispatch`. It asks the context of the running thread whether a call of tawin
has the word, and attends as that call says. All other forwards, those of other threads among them, get transformers'
own sdpa. So one model serves several threads, and an exception leaves it as it was.

Called by packing (batches without padding), decode_attention (steps of a beam search) and causal_attention (SFT).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

_NAME = "sdpa"


class Attention(Protocol):
    """How the layers of one decoder call attend. One object per call."""

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> tuple[Tensor, Any]:
        """query [B, heads, Q, D], key and value [B, kv_heads, K, D] -> [B, Q, heads, D], and weights or None."""
        ...


@dataclass
class _Word:
    """A call that has the word, and how often layers have asked it."""

    attention: Attention
    asked: int = 0


_word: ContextVar[_Word | None] = ContextVar("_word", default=None)


def install() -> None:
    """Put `_dispatch` into transformers' registry. Called for every model that is taken apart."""
    if AttentionInterface()[_NAME] is sdpa:
        AttentionInterface.register(_NAME, _dispatch)


@contextmanager
def attending(attention: Attention | None) -> Iterator[None]:
    """Within it the decoders that this thread runs attend as `attention` says; None: as they do by themselves."""
    token = _word.set(None if attention is None else _Word(attention))
    try:
        yield
    finally:
        _word.reset(token)


def current() -> Attention | None:
    """What `attending` was given in this thread."""
    word = _word.get()
    return None if word is None else word.attention


def placeholder(device: torch.device) -> Tensor:
    """What a decoder is handed as its mask where the attention of the call has one of its own, or none.

    Beside a mask of four dimensions decoders make none; handed nothing, they would.
    """
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def require_asked(decoder: nn.Module) -> None:
    """Refuse, within `attending`, a decoder that ran without asking: its result would be wrong in silence.

    Raises:
        RuntimeError: the layers do not look their attention up, are compiled, or another package has registered an
            "sdpa" of its own since.
    """
    word = _word.get()
    if word is not None and word.asked == 0:
        raise RuntimeError(
            f"{type(decoder).__name__}: its layers did not run the attention of this call: they are compiled, or "
            "'sdpa' in transformers' AttentionInterface was registered anew"
        )


def _dispatch(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, Any]:
    # Dynamo cannot trace a ContextVar: what a user compiles is transformers' own sdpa (`require_asked` sees that).
    if torch.compiler.is_compiling():
        return sdpa(module, query, key, value, attention_mask, **options)
    word = _word.get()
    if word is None:
        return sdpa(module, query, key, value, attention_mask, **options)
    word.asked += 1
    token = _word.set(None)  # an attention may ask the registry for another one
    try:
        return word.attention.attend(module, query, key, value, attention_mask, **options)
    finally:
        _word.reset(token)
