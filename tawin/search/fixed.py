"""A decode on memory of its own: every tensor it reads has a fixed address and shape, as CUDA graphs need.

Prompts are filled up on the left to a fixed length, and a hidden key, there or behind a short prompt, changes nothing.
The same code runs eagerly, on the CPU too. Knows nothing of graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from ..model.backbone import Backbone
from ..model.tree_attention import Prompt
from .decode import BeamOptions, Sequences, decode


@dataclass
class _Room:
    capacity: int
    begin: int = 0
    end: int = 0


class _FixedLayer(DynamicLayer):
    """Keys and values [B, heads, capacity, D] of one layer; new ones are written behind the last ones."""

    def __init__(self, room: _Room) -> None:
        super().__init__()
        self._room = room
        self.begin, self.end = room.begin, room.end

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            states.new_zeros(*states.shape[:2], self._room.capacity, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.end = self.end, self.end + key_states.shape[2]
        self.keys[:, :, start : self.end] = key_states
        self.values[:, :, start : self.end] = value_states
        return self.keys[:, :, self.begin : self.end], self.values[:, :, self.begin : self.end]

    def get_seq_length(self) -> int:
        return self.end - self.begin

    def place(self, begin: int, end: int) -> None:
        self.begin, self.end = begin, end


class FixedCache(Cache):
    """A transformers cache of `capacity` keys that are never moved."""

    def __init__(self, capacity: int) -> None:
        room = _Room(capacity)
        super().__init__(layer_class_to_replicate=lambda: _FixedLayer(room))
        self._room = room

    def place(self, begin: int, end: int) -> None:
        """From here on the layers hold the keys begin .. end, and the next ones are written behind them."""
        self._room.begin, self._room.end = begin, end
        for layer in self.layers:
            layer.place(begin, end)

    def clear(self, end: int) -> None:
        """Set the first `end` keys and values to 0: hidden keys are multiplied by 0, which a NaN would survive."""
        for layer in self.layers:
            layer.keys[:, :, :end] = 0
            layer.values[:, :, :end] = 0


class FixedDecode:
    """One beam search of a fixed batch and prompt length, run again and again on the same memory."""

    def __init__(self, prompt_keys: int, options: BeamOptions) -> None:
        """prompt_keys: the most tokens that a prompt may have."""
        self._prompt_keys = prompt_keys
        self._options = options
        self._cache = FixedCache(prompt_keys + options.appended_keys)
        self._prompt: Prompt | None = None

    @torch.no_grad()
    def load(self, prompt: Prompt) -> None:
        """Copy prompts here: the only part that sees their own length."""
        front = self._prompt_keys - prompt.key_mask.shape[1]
        self._cache.place(front, front)
        self._cache.clear(front)
        for index, layer in enumerate(prompt.cache.layers):
            self._cache.update(layer.keys, layer.values, index)
        loaded = {
            "last_hidden": prompt.last_hidden,
            "key_mask": pad(prompt.key_mask, (front, 0)),
            "key_positions": pad(prompt.key_positions, (front, 0)),
            "lengths": prompt.lengths,
        }
        if self._prompt is None:
            own = {name: value.clone() for name, value in loaded.items()}
            self._prompt = Prompt(cache=self._cache, is_padded=True, **own)
        for name, value in loaded.items():
            getattr(self._prompt, name).copy_(value)

    def run(self, model: Backbone) -> Sequences:
        """The whole search after the prefill. Without a host synchronisation where `beam_step` has none."""
        assert self._prompt is not None, "load a batch first"
        self._cache.place(0, self._prompt_keys)
        return decode(model, self._prompt, self._options, stops_early=False, in_chains=False)
