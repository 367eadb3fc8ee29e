"""Beam searches as CUDA graphs: the decode of a shape that comes back is captured once and replayed.

A graph holds all steps after the prefill for one batch size, prompt length (rounded up to PROMPT_STEP), beam width,
trie, options and autocast state, on memory of its own: the KV cache above all. It reads the model's parameters by
their addresses, so optimizer steps, which write in place, are seen; what is made of them, a cast or an LM head with its
LoRA, is made anew within the graph. Parameters that moved, or adapters that were switched, drop a model's graphs.

The first search of a shape runs without a graph: most shapes of an evaluation never come back. Graphs are kept up to a
share of the device's memory. Where there is no more, a shape takes the place of graphs that were not used since it was
last searched: shapes that take turns do not capture each other away. What cannot be captured runs without a graph for
good, after one warning that says why. A graph's memory serves one search at a time: those of several threads wait for
each other, on the device too.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from ..model.backbone import Backbone
from ..model.dropout import drop_in_training
from ..model.packing import put_rows_back, take_rows
from ..model.tree_attention import Prompt
from ..model.trial import keep_states
from .decode import BeamOptions, Sequences
from .fixed import FixedDecode

PROMPT_STEP = 64  # tokens; a prompt is filled up to a multiple of it, with keys that are read and hidden
GRAPH_SHARE = 1 / 8  # of the device's memory, for the graphs of a model
# Of a graph, beside its KV cache: logits of a beam step, at most 64 MiB, workspaces of cuBLAS, activations.
_BYTES_BESIDE_KEYS = 2**27
_MAX_SEEN = 256

# Rotary embeddings of these kinds are made anew, on the host's decision, when a prompt is longer than the last ones.
_CHANGING_ROPE = ("dynamic", "longrope")


# Hooks that do nothing in a decode.
_IDLE_HOOKS = {drop_in_training, keep_states, put_rows_back, take_rows}


@dataclass
class _Captured:
    decode: FixedDecode
    graph: torch.cuda.CUDAGraph
    found: Sequences  # written by each replay
    read: torch.cuda.Event  # after what the last search read of them

    def search(self, prompt: Prompt) -> Sequences:
        with torch.cuda.device(prompt.key_mask.device):
            self.read.wait()  # another thread may run on another stream
            self.decode.load(prompt)
            self.graph.replay()
            found = Sequences(*(getattr(self.found, part.name).clone() for part in fields(Sequences)))
            self.read.record()
            return found


@dataclass
class ModelGraphs:
    """The graphs of one model."""

    modules: _Modules | None = None
    addresses: Hashable = None
    graphs: OrderedDict[Hashable, _Captured] = field(default_factory=OrderedDict)  # least recently used first
    bytes: dict[Hashable, int] = field(default_factory=dict)  # of each graph
    searches: int = 0
    seen: dict[Hashable, int] = field(default_factory=dict)  # which search was the last of each shape
    is_refused: bool = False
    has_warned: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)

    def drop(self) -> None:
        """Let all graphs go."""
        self.graphs.clear()
        self.bytes.clear()

    def see(self, key: Hashable) -> int | None:
        """Note a search of this shape; returns which was the last before, None: there was none."""
        self.searches += 1
        last = self.seen.pop(key, None)
        if len(self.seen) >= _MAX_SEEN:
            del self.seen[next(iter(self.seen))]
        self.seen[key] = self.searches
        return last

    def make_room(self, needed: int, budget: int, last: int) -> bool:
        """Let graphs go that were not used since search `last`, until there is room; False, and none goes, if not."""
        idle = []
        free = budget - sum(self.bytes.values())
        for key in self.graphs:  # least recently used first
            if free >= needed or self.seen.get(key, 0) > last:
                break
            idle.append(key)
            free += self.bytes[key]
        # One is kept whatever it takes.
        if free < needed and len(idle) < len(self.graphs):
            return False
        for key in idle:
            del self.graphs[key], self.bytes[key]
        return True

    def warn(self, reason: str) -> None:
        """Say once that, and why, this model is run without graphs."""
        if not self.has_warned:
            warnings.warn(f"beam search runs without CUDA graphs: {reason}", RuntimeWarning, stacklevel=2)
        self.has_warned = True


# By decoder. No graph refers to its model: the graphs go when the model goes.
_models: weakref.WeakKeyDictionary[nn.Module, ModelGraphs] = weakref.WeakKeyDictionary()


def replay(model: Backbone, prompt: Prompt, options: BeamOptions) -> Sequences | None:
    """The search after the prefill by CUDA graph, or None: run it without one. `prompt` on CUDA; left as it is."""
    own = _models.setdefault(model.decoder, ModelGraphs())
    with own.lock:
        return _replay(own, model, prompt, options)


def _replay(own: ModelGraphs, model: Backbone, prompt: Prompt, options: BeamOptions) -> Sequences | None:
    if own.is_refused:
        return None
    modules = _modules_of(own, model)
    reason = obstacle(model, modules)
    if reason is not None:
        own.warn(reason)
        return None
    addresses = addresses_of(model, modules)
    if own.addresses != addresses:
        own.drop()
        own.addresses = addresses
    batch, length = prompt.key_mask.shape
    prompt_keys = -(-length // PROMPT_STEP) * PROMPT_STEP
    key = (batch, prompt_keys, options, prompt.key_mask.device, _numerics())
    last = own.see(key)
    needed = _bytes_of(prompt, prompt_keys + options.appended_keys)
    if key in own.graphs:
        own.graphs.move_to_end(key)
    elif last is None or not own.make_room(needed, _budget(prompt.key_mask.device), last):
        return None
    # What is kept must serve every later call, whoever asks first.
    with torch.inference_mode(False), torch.no_grad():
        if key not in own.graphs:
            try:
                options.trie.prepare()
                own.graphs[key] = _capture(model, prompt, FixedDecode(prompt_keys, options))
                own.bytes[key] = needed
            except Exception as error:  # whatever it is: the search is as well run without a graph
                own.drop()
                own.is_refused = True
                own.warn(f"capture failed: {type(error).__name__}: {error}")
                return None
        return own.graphs[key].search(prompt)


def _bytes_of(prompt: Prompt, capacity: int) -> int:
    """About what a graph takes that holds `capacity` keys of each prompt."""
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in prompt.cache.layers)
    return held // prompt.key_mask.shape[1] * capacity + _BYTES_BESIDE_KEYS


def _budget(device: torch.device) -> int:
    """Bytes for the graphs of a model."""
    return int(torch.cuda.get_device_properties(device).total_memory * GRAPH_SHARE)


def _capture(model: Backbone, prompt: Prompt, decode: FixedDecode) -> _Captured:
    with torch.cuda.device(prompt.key_mask.device):
        decode.load(prompt)
        # Once on a stream of its own before: libraries set themselves up and kernels are compiled at their first use.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            decode.run(model)
        torch.cuda.current_stream().wait_stream(stream)
        # A cast weight that autocast made before lies outside of the graph and is freed with the region; one that is
        # made within belongs to the graph and holds nothing until a replay. So its cache is empty before and after.
        torch.clear_autocast_cache()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                found = decode.run(model)
        finally:
            torch.clear_autocast_cache()
        return _Captured(decode, graph, found, torch.cuda.Event())


class _Modules:
    """The modules of a model as one list: every search looks at all of them, and to walk their tree is slow."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._refs = [weakref.ref(module) for module in modules]  # no graph refers to its model
        self._children = [_children(module) for module in modules]

    def of(self, model: Backbone) -> list[nn.Module] | None:
        """The modules; None where the list is no longer that of the model."""
        modules = [module for ref in self._refs if (module := ref()) is not None]
        if len(modules) < len(self._refs) or modules[0] is not model.decoder or model.head not in modules:
            return None
        if any(_children(module) != known for module, known in zip(modules, self._children, strict=True)):
            return None
        return modules


def _children(module: nn.Module) -> tuple[int, ...]:
    return tuple(map(id, module._modules.values())) if module._modules else ()


def _walk(model: Backbone) -> list[nn.Module]:
    return [*model.decoder.modules(), *model.head.modules()]


def _modules_of(own: ModelGraphs, model: Backbone) -> list[nn.Module]:
    """The modules of the model, walked anew only where its tree has changed."""
    modules = None if own.modules is None else own.modules.of(model)
    if modules is None:
        modules = _walk(model)
        own.modules = _Modules(modules)
    return modules


def obstacle(model: Backbone, modules: list[nn.Module] | None = None) -> str | None:
    """Why a replay would not be what the model does when it is run; None where nothing is in the way.

    modules: all of decoder and head, if known.
    """
    for module in _walk(model) if modules is None else modules:
        reason = _obstacle_in(module)
        if reason is not None:
            named = [*model.decoder.named_modules(), *model.head.named_modules()]
            name = next(name for name, other in named if other is module)
            return f"{name or 'model'} ({type(module).__name__}) {reason}"
    return None


def _obstacle_in(module: nn.Module) -> str | None:
    if module.training:
        return "is in training mode; call model.eval()"
    if {*module._forward_pre_hooks.values(), *module._forward_hooks.values()} - _IDLE_HOOKS:
        return "has forward hooks, which a replay would leave out"
    kinds = vars(module).get("rope_type")
    if kinds is not None:
        changing = set(kinds.values() if isinstance(kinds, dict) else (kinds,)) & set(_CHANGING_ROPE)
        if changing:
            return f"has {changing.pop()} rotary embeddings, which change with the prompt"
    return None


def addresses_of(model: Backbone, modules: list[nn.Module] | None = None) -> Hashable:
    """Where the tensors lie that a graph reads, and what decides which of them it reads.

    modules: all of decoder and head, if known.
    """
    tensors: list[Hashable] = []
    switches: list[Hashable] = []
    layer: Any
    for layer in _walk(model) if modules is None else modules:
        for own in (layer._parameters, layer._buffers):
            if own:
                tensors += [(tensor.data_ptr(), tensor.dtype) for tensor in own.values() if tensor is not None]
        # A layer of peft. A whole model of transformers has a method of that name.
        if isinstance(getattr(type(layer), "active_adapters", None), property):
            known = vars(layer)
            switches += tuple(layer.active_adapters), layer.disable_adapters, tuple(known.get("merged_adapters", ()))
            switches.append(tuple(known.get("scaling", {}).items()))
    return tuple(tensors), tuple(switches), model.config._attn_implementation


def _numerics() -> Hashable:
    """Global settings that decide which kernels are captured."""
    autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    return autocast, torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
