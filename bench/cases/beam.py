"""Shapes and inputs of one beam step: catalogues, beams that stand in them, the work that a step is, who agrees.

Catalogues are four-level semantic ids drawn with a fixed seed, 256 codes a level, every item distinct; each level has
tokens of its own above the text tokens. Nothing here reads a clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from tawin_kernels import BeamStep, ItemTrie
from torch import Tensor

from .floors import floor_seconds

LEVELS = 4
CODES = 256


@dataclass(frozen=True)
class StepShape:
    """One beam step. The defaults are the point from which each axis is swept."""

    prompts: int = 256
    beams: int = 16
    beam_width: int = 16
    items: int = 1_000_000
    hidden_size: int = 896
    text_tokens: int = 151_936
    depth: int = 1  # at which the beams' nodes stand
    normalizer: str = "vocab"
    dtype: torch.dtype = torch.bfloat16

    @property
    def vocabulary(self) -> int:
        return self.text_tokens + LEVELS * CODES

    def __str__(self) -> str:
        return (
            f"{self.prompts} prompts, {self.beams} beams to {self.beam_width}, {self.items:,} items, "
            f"depth {self.depth}, hidden {self.hidden_size}, vocabulary {self.vocabulary:,}, {self.normalizer}, "
            f"{str(self.dtype).removeprefix('torch.')}"
        )


_BASE = StepShape()
_BASE_OF_TRIE = StepShape(normalizer="trie")
_SMALL = StepShape(prompts=4, items=3_700, hidden_size=256, text_tokens=19_000, dtype=torch.float32)

GPU_SHAPES = {
    "base": _BASE,
    "1 prompt": replace(_BASE, prompts=1),
    "16 prompts": replace(_BASE, prompts=16),
    "4 beams": replace(_BASE, beams=4, beam_width=4),
    "50 beams": replace(_BASE, beams=50, beam_width=50),
    "256 beams": replace(_BASE, beams=256, beam_width=256),
    "3.7e3 items": replace(_BASE, items=3_700),
    "1e5 items": replace(_BASE, items=100_000),
    "1e7 items": replace(_BASE, items=10_000_000),
    "hidden 2048": replace(_BASE, hidden_size=2048),
    "small vocabulary": replace(_BASE, text_tokens=768),
    "root": replace(_BASE, beams=1, depth=0),
    "depth 2": replace(_BASE, depth=2),
    "depth 3": replace(_BASE, depth=3),
    "trie": _BASE_OF_TRIE,
    "trie, 1 prompt": replace(_BASE_OF_TRIE, prompts=1),
    "trie, 16 prompts": replace(_BASE_OF_TRIE, prompts=16),
    "trie, 256 beams": replace(_BASE_OF_TRIE, beams=256, beam_width=256),
    "trie, 3.7e3 items": replace(_BASE_OF_TRIE, items=3_700),
    "trie, 1e5 items": replace(_BASE_OF_TRIE, items=100_000),
    "trie, 1e7 items": replace(_BASE_OF_TRIE, items=10_000_000),
    "trie, hidden 2048": replace(_BASE_OF_TRIE, hidden_size=2048),
}
CPU_SHAPES = {"small": _SMALL, "small, trie": replace(_SMALL, normalizer="trie", items=100_000)}


@dataclass(frozen=True)
class StepInputs:
    hidden: Tensor  # [B, W, H]
    lm_head_weight: Tensor  # [V, H]
    nodes: Tensor  # int64 [B, W], distinct within a prompt; -1 where the level has fewer nodes than beams
    scores: Tensor  # fp32 [B, W]


@dataclass(frozen=True)
class Work:
    """What one step cannot do without."""

    bytes: int
    flops: int
    candidates: int

    @property
    def floor_seconds(self) -> float:
        """On the H200 of `floors`."""
        return floor_seconds(self.bytes, self.flops)


def draw_items(count: int, codes: int = CODES, *, seed: int = 0) -> np.ndarray:
    """int64 [count, LEVELS]: `count` distinct items in no order, drawn from all codes ** LEVELS alike."""
    ids = np.random.default_rng(seed).choice(codes**LEVELS, count, replace=False)
    return np.stack([ids // codes ** (LEVELS - 1 - level) % codes for level in range(LEVELS)], axis=1)


@lru_cache
def catalogue(items: int, text_tokens: int) -> ItemTrie:
    """The trie of `items` drawn items, on the CPU; level d has the CODES tokens from text_tokens + CODES * d on."""
    return ItemTrie.from_sequences(torch.from_numpy(draw_items(items)) + text_tokens + CODES * torch.arange(LEVELS))


def make_inputs(shape: StepShape, trie: ItemTrie, *, seed: int = 0) -> StepInputs:
    """Random states and logits of about N(0, 1), on the device of the trie."""
    draw = torch.Generator(trie.device).manual_seed(seed)
    size = (shape.prompts, shape.beams)

    def normal(*sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(sizes, generator=draw, device=trie.device) * scale).to(shape.dtype)

    first, end = trie.level_offsets[shape.depth : shape.depth + 2]
    standing = min(shape.beams, end - first)
    starts = torch.randint(end - first, (shape.prompts, 1), generator=draw, device=trie.device)
    steps = torch.arange(standing, device=trie.device) * ((end - first) // standing)  # spread out, none met twice
    nodes = torch.full(size, -1, device=trie.device)
    nodes[:, :standing] = first + (starts + steps) % (end - first)
    return StepInputs(
        hidden=normal(*size, shape.hidden_size),
        lm_head_weight=normal(shape.vocabulary, shape.hidden_size, scale=shape.hidden_size**-0.5),
        nodes=nodes,
        scores=torch.randn(size, generator=draw, device=trie.device),
    )


def work_of(shape: StepShape, trie: ItemTrie, inputs: StepInputs) -> Work:
    """Bytes that have to be read or written once, and FLOPs of the dot products.

    The LM head is read whole for the normalizer "vocab", else its rows of tokens that are any beam's child. The top-k
    and the softmax are not counted.
    """
    live = inputs.nodes[inputs.nodes >= 0]
    counts = trie.child_offsets.diff()[live].long()  # [live beams]
    candidates = int(counts.sum())
    known = live.unique()
    known_counts = trie.child_offsets.diff()[known].long()
    begins = known_counts.cumsum(0) - known_counts
    slots = torch.arange(int(known_counts.sum()), device=trie.device) - begins.repeat_interleave(known_counts)
    edges = trie.child_offsets[known].long().repeat_interleave(known_counts) + slots  # each edge once
    is_vocab = shape.normalizer == "vocab"
    head_rows = shape.vocabulary if is_vocab else len(trie.edge_tokens[edges].unique())
    element = shape.dtype.itemsize
    moved = (
        head_rows * shape.hidden_size * element
        + len(live) * shape.hidden_size * element
        + len(edges) * trie.edge_tokens.element_size()
        + len(known) * 2 * trie.child_offsets.element_size()
        + inputs.nodes.nbytes
        + inputs.scores.nbytes
        + shape.prompts * shape.beam_width * (4 + 3 * 8)  # scores fp32; tokens, nodes, parents int64
    )
    products = len(live) * shape.vocabulary if is_vocab else candidates
    return Work(bytes=moved, flops=2 * products * shape.hidden_size, candidates=candidates)


def score_tolerance(dtype: torch.dtype) -> float:
    """How far two ways' scores may lie apart.

    fp32: sums of a few hundred products in another order. bf16 and fp16: the peers' logits are rounded to the dtype, by
    2 * eps where they are below 8 (half a unit in the last place); the logsumexp may move by as much, never more.
    """
    return 1e-4 if dtype == torch.float32 else max(1e-3, 4 * torch.finfo(dtype).eps)


def compare_steps(ours: BeamStep, theirs: BeamStep, tolerance: float) -> str:
    """AssertionError unless both chose the same, ties within the tolerance apart; else how well they agree."""
    present = ours.nodes >= 0  # [B, beam_width]
    assert torch.equal(present.sum(1), (theirs.nodes >= 0).sum(1)), "the ways do not find as many candidates"
    gap = (ours.scores - theirs.scores)[present].abs().max().item() if bool(present.any()) else 0.0
    assert gap <= tolerance, f"scores differ by {gap:.2g}, allowed {tolerance:g}"
    same = (
        (ours.nodes[:, :, None] == theirs.nodes[:, None])
        & (ours.parents[:, :, None] == theirs.parents[:, None])
        & (ours.tokens[:, :, None] == theirs.tokens[:, None])
        & present[:, :, None]
    )  # [B, beam_width of ours, beam_width of theirs]
    is_shared = same.any(2)
    moved = (ours.scores - theirs.scores.gather(1, same.byte().argmax(2)))[is_shared].abs()
    assert bool((moved <= tolerance).all()), f"choices differ: one's score by {moved.max().item():.2g}"
    # What only ours chose must stand at the cut: within the tolerance of the last place, once for each way.
    last = ours.scores.masked_fill(~present, math.inf).amin(1, keepdim=True)
    is_wrong = present & ~is_shared & (ours.scores > last + 2 * tolerance)
    assert not bool(is_wrong.any()), f"choices differ at {is_wrong.nonzero()[:5].tolist()}"
    return f"{int(is_shared.sum())} of {int(present.sum())} choices the same, scores within {gap:.1e}"
