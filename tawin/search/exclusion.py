"""Items that a beam search must not find, a set of its own for each prompt.

The search runs as if the trie did not have them: a branch whose items are all excluded takes no beam, so W beams give W
other items where there are as many. What is left keeps its scores. Called by `completions.beam_search` and `decode`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from tawin_kernels import BeamStep, ItemTrie
from torch import Tensor

from ..data.ragged import Ragged


@dataclass(frozen=True, eq=False)
class Excluded:
    """What B prompts may not get, as the search meets it. `excluded_of` makes it."""

    nodes: Tensor  # int64 [B, D], nodes with nothing but excluded items below them, ascending; num_nodes = padding
    at_depth: tuple[int, ...]  # the most such nodes that a prompt has at each depth, from the root's on
    items: Tensor  # int64 [B, E], excluded items that share their sequence with others, ascending; num_items = padding

    def candidates(self, depth: int, wanted: int) -> int:
        """How many candidates of a step hold the best `wanted` ones that are not excluded."""
        return wanted + self.at_depth[depth]

    def keep(self, step: BeamStep, wanted: int) -> BeamStep:
        """The best `wanted` candidates of a step that are not excluded; missing ones last."""
        gone = _among(step.nodes, self.nodes)
        # Stable: the candidates that stay keep their order.
        order = gone.sort(dim=1, stable=True).indices[:, :wanted]
        gone = gone.gather(1, order)
        scores, tokens, nodes, parents = (part.gather(1, order) for part in step)
        return BeamStep(
            scores=scores.masked_fill(gone, -torch.inf),
            tokens=tokens.masked_fill(gone, -1),
            nodes=nodes.masked_fill(gone, -1),
            parents=parents.masked_fill(gone, 0),
        )

    def of_items(self, items: Tensor) -> Tensor:
        """bool [B, W]: which items of int64 [B, W], -1 = missing, share a sequence and are excluded."""
        return _among(items, self.items)


def excluded_of(trie: ItemTrie, items: Sequence[np.ndarray]) -> Excluded:
    """items: for each prompt the rows of the trie's catalogue that it may not get, in any order, repeated or not.

    Raises:
        ValueError: an item that the catalogue does not have.
    """
    ragged = Ragged.of(items)
    flat = ragged.flat().astype(np.int64, copy=False)
    if len(flat) and (flat.min() < 0 or flat.max() >= trie.num_items):
        raise ValueError(f"exclude: expected items in [0, {trie.num_items}), got {flat.min()}..{flat.max()}")
    prompt = np.repeat(np.arange(len(ragged)), ragged.lengths)
    # A pair of prompt and item (or node) is one number, so that sorting and counting pairs is that of numbers.
    pairs = torch.from_numpy(np.unique(prompt * trie.num_items + flat)).to(trie.device)
    prompt_of, item = pairs // trie.num_items, pairs % trie.num_items
    leaves, place, counts = torch.unique(
        prompt_of * trie.num_nodes + trie.leaf_of_item[item], return_inverse=True, return_counts=True
    )
    whole = counts == trie.item_offsets.diff()[leaves % trie.num_nodes]
    nodes, at_depth = _with_parents(trie, leaves[whole], len(ragged))
    return Excluded(
        nodes=_rows(nodes, trie.num_nodes, len(ragged)),
        at_depth=at_depth,
        items=_rows(pairs[~whole[place]], trie.num_items, len(ragged)),
    )


def _with_parents(trie: ItemTrie, leaves: Tensor, prompts: int) -> tuple[Tensor, tuple[int, ...]]:
    """The pairs of prompt and leaf with the nodes above all of whose children are there, and `at_depth` of them."""
    found, at_depth = [], [0]
    children = trie.child_offsets.diff()
    below = leaves.new_zeros(0)  # pairs at the depth below whose parents may be excluded
    for first, end in reversed(list(pairwise(trie.level_offsets))[1:]):
        node = leaves % trie.num_nodes
        parent = below - below % trie.num_nodes + _parents(trie, below % trie.num_nodes)
        parent, counts = torch.unique(parent, return_counts=True)
        inner = parent[counts == children[parent % trie.num_nodes]]
        below = torch.cat((leaves[(node >= first) & (node < end)], inner))
        found.append(below)
        at_depth.insert(1, int(torch.bincount(below // trie.num_nodes, minlength=max(1, prompts)).max()))
    return torch.cat(found).sort().values, tuple(at_depth)


def _parents(trie: ItemTrie, nodes: Tensor) -> Tensor:
    """int64, the node above each node that is not the root."""
    edges = (nodes - 1).to(trie.child_offsets.dtype)
    return torch.searchsorted(trie.child_offsets, edges, right=True) - 1


def _rows(pairs: Tensor, base: int, prompts: int) -> Tensor:
    """Sorted pairs prompt * base + value as rows of values: int64 [prompts, most or 1], base = padding."""
    prompt = pairs // base
    counts = torch.bincount(prompt, minlength=prompts)
    rows = pairs.new_full((prompts, max(1, int(counts.max()) if prompts else 0)), base)
    place = torch.arange(len(pairs), device=pairs.device) - (counts.cumsum(0) - counts)[prompt]
    rows[prompt, place] = pairs % base
    return rows


def _among(values: Tensor, rows: Tensor) -> Tensor:
    """bool, of the shape of values [B, C]: which of them are in their prompt's row of [B, D], which ascends."""
    place = torch.searchsorted(rows, values.contiguous()).clamp_max(rows.shape[1] - 1)
    return rows.gather(1, place) == values
