"""ItemTrie: the catalogue as a breadth-first CSR token trie.

Nodes are numbered breadth first with the root 0 and the children of a node ascending by token, so edge e leads to
node e + 1 and no child pointer is stored. The module knows item numbers and token numbers, not what they mean.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch

from ..arguments import require_int
from .file import ARRAYS, chunks, read_arrays, write_arrays
from .sequences import INT32_MAX, append, check_prefixes, check_tokens, flatten, starts_of


class Below(NamedTuple):
    """What can follow some of a trie's nodes: those of one depth, or all."""

    tokens: torch.Tensor  # int32 [U], distinct, ascending
    slots: torch.Tensor  # int32 [max_token + 1]: where each token stands among them, -1 = it does not follow
    max_children: int
    nodes: int
    edges: int


@dataclass(frozen=True, eq=False, repr=False)
class ItemTrie:
    """A catalogue of token sequences. Build it with `ItemTrie.from_sequences`, not by hand.

    Four int32 arrays, 12 bytes per node and 4 per item. The edges of node n are child_offsets[n] ..
    child_offsets[n + 1], the items that end at node n are item_ids[item_offsets[n] : item_offsets[n + 1]], ascending.
    Items end at leaves only.
    """

    child_offsets: torch.Tensor  # int32 [nodes + 1]
    edge_tokens: torch.Tensor  # int32 [nodes - 1]
    item_offsets: torch.Tensor  # int32 [nodes + 1]
    item_ids: torch.Tensor  # int32 [items]
    level_offsets: tuple[int, ...]
    """The first node of each depth, then num_nodes: depth d has the nodes level_offsets[d] .. level_offsets[d + 1]."""
    leaf_depths: tuple[int, ...]
    """The depths at which some item ends, ascending: the lengths that items have."""
    max_children: int
    """The most children that a node has."""
    max_token: int
    """The largest token of an edge."""

    @classmethod
    def from_sequences(
        cls,
        token_ids: torch.Tensor | Sequence[Sequence[int]],
        *,
        end_token: int | None = None,
        lengths: torch.Tensor | None = None,
    ) -> ItemTrie:
        """The trie of a catalogue; item i is row i, and several items may share a sequence.

        token_ids: int64 [items, L], or a list of token lists of any lengths.
        end_token: appended to every item; needed where an item is a proper prefix of another.
        lengths: int64 [items], how many tokens of each row of a tensor count; what follows them is not read.

        The trie lies on the device of `token_ids`. ValueError for an item that is a proper prefix of another (both are
        named), negative tokens, tokens above int32, empty items and no items.
        """
        flat, lengths = flatten(token_ids, lengths)
        check_tokens(flat, lengths)
        if end_token is not None:
            require_int("end_token", end_token, minimum=0, maximum=INT32_MAX)
            flat, lengths = append(flat, lengths, int(end_token))
        starts = starts_of(lengths)  # [items]

        # Level by level: the items' current nodes and next tokens, sorted and made unique, are the next level's nodes.
        leaves = torch.zeros_like(lengths)  # [items], the node that each item has come to
        going_on = torch.arange(len(lengths), device=flat.device)  # the items that have a next token
        stride = int(flat.max()) + 1
        parents, tokens = [], []
        num_nodes = 1
        for depth in range(int(lengths.max())):
            going_on = going_on[lengths[going_on] > depth]
            edges, edge_of_item = torch.unique(
                leaves[going_on] * stride + flat[starts[going_on] + depth], return_inverse=True
            )
            parents.append(edges // stride)
            tokens.append(edges % stride)
            leaves[going_on] = edge_of_item + num_nodes
            num_nodes += len(edges)
        if max(num_nodes, len(lengths)) >= INT32_MAX:
            got = f"{num_nodes} nodes and {len(lengths)} items"
            raise ValueError(f"token_ids: expected fewer than 2**31 - 1 nodes and items, got {got}")

        child_counts = torch.bincount(torch.cat(parents), minlength=num_nodes)
        check_prefixes(flat, lengths, child_counts[leaves] > 0)
        return cls._from_arrays(
            child_offsets=_offsets(child_counts),
            edge_tokens=torch.cat(tokens).int(),
            item_offsets=_offsets(torch.bincount(leaves, minlength=num_nodes)),
            item_ids=torch.argsort(leaves, stable=True).int(),
        )

    @classmethod
    def _from_arrays(
        cls,
        child_offsets: torch.Tensor,
        edge_tokens: torch.Tensor,
        item_offsets: torch.Tensor,
        item_ids: torch.Tensor,
    ) -> ItemTrie:
        levels = [0, 1]
        while (following := int(child_offsets[levels[-1]]) + 1) > levels[-1]:
            levels.append(following)
        # In chunks: the arrays may be larger than the memory that is left.
        has_leaves = [
            any(bool((part.diff() == 0).any()) for _, part in chunks(child_offsets[first : end + 1]))
            for first, end in pairwise(levels)
        ]
        return cls(
            child_offsets=child_offsets,
            edge_tokens=edge_tokens,
            item_offsets=item_offsets,
            item_ids=item_ids,
            level_offsets=tuple(levels),
            leaf_depths=tuple(depth for depth, has_leaf in enumerate(has_leaves) if has_leaf),
            max_children=max(int(part.diff().max()) for _, part in chunks(child_offsets)),
            max_token=int(edge_tokens.max()),
        )

    def __repr__(self) -> str:
        return (
            f"ItemTrie(num_items={self.num_items}, num_nodes={self.num_nodes}, max_depth={self.max_depth}, "
            f"max_children={self.max_children}, device={str(self.device)!r})"
        )

    @property
    def num_items(self) -> int:
        """Items, those that share a sequence each for itself."""
        return len(self.item_ids)

    @property
    def num_nodes(self) -> int:
        """Nodes, the root included."""
        return len(self.child_offsets) - 1

    @property
    def max_depth(self) -> int:
        """Tokens of the longest item, the end token included."""
        return len(self.level_offsets) - 2

    @property
    def device(self) -> torch.device:
        """Where its tensors lie."""
        return self.child_offsets.device

    @cached_property
    def leaf_of_item(self) -> torch.Tensor:
        """The node at which each item ends, int64 [items]. Made on first use and kept: not to be written to."""
        with torch.inference_mode(False):  # what is kept must serve training too, whoever asks first
            nodes = torch.arange(self.num_nodes, device=self.device)
            leaves = torch.empty(self.num_items, dtype=torch.int64, device=self.device)
            leaves[self.item_ids.long()] = nodes.repeat_interleave(self.item_offsets.diff())
        return leaves

    @cached_property
    def num_sequences(self) -> int:
        """Distinct sequences, the leaves: items may share one. Waits for the device once."""
        return sum(int((part.diff() == 0).sum()) for _, part in chunks(self.child_offsets))

    @cached_property
    def used_tokens(self) -> torch.Tensor:
        """The distinct tokens of all edges, ascending, int32 [U]. Made on first use (waits for the device) and kept."""
        with torch.inference_mode(False):
            return self.edge_tokens.unique()

    @cached_property
    def token_slots(self) -> torch.Tensor:
        """int32 [max_token + 1]: where each token stands in `used_tokens`, -1 = it is not there. Kept as that is."""
        with torch.inference_mode(False):
            return self._slots(self.used_tokens)

    @cached_property
    def levels(self) -> tuple[Below, ...]:
        """Of each depth but the last, what can follow its nodes. Made on first use (waits for the device) and kept."""
        with torch.inference_mode(False):
            return tuple(self._level(depth) for depth in range(self.max_depth))

    def _level(self, depth: int) -> Below:
        first, last, end = self.level_offsets[depth : depth + 3]
        tokens = self.edge_tokens[last - 1 : end - 1].unique()  # edge e leads to node e + 1
        counts = self.child_offsets[first : last + 1].diff()
        return Below(tokens, self._slots(tokens), int(counts.max()), len(counts), end - last)

    def below(self, depth: int | None) -> Below:
        """What can follow the nodes of a depth in [0, max_depth), or any node."""
        if depth is not None:
            return self.levels[depth]
        return Below(self.used_tokens, self.token_slots, self.max_children, self.num_nodes, self.num_nodes - 1)

    def _slots(self, tokens: torch.Tensor) -> torch.Tensor:
        slots = torch.full((self.max_token + 1,), -1, dtype=torch.int32, device=self.device)
        slots[tokens.long()] = torch.arange(len(tokens), dtype=torch.int32, device=self.device)
        return slots

    @cached_property
    def chain_ends(self) -> torch.Tensor:
        """int64 [nodes]: the first node without a single child, from each node down its chain. Made once and kept."""
        with torch.inference_mode(False):
            ends = torch.arange(self.num_nodes, device=self.device)
            for first, end in reversed(list(pairwise(self.level_offsets))[:-1]):
                single = (self.child_offsets[first : end + 1].diff() == 1).nonzero()[:, 0] + first
                ends[single] = ends[self.child_offsets[single].long() + 1]
        return ends

    @cached_property
    def longest_chain(self) -> int:
        """The most tokens that follow a node without a choice. Waits for the device once."""
        depths = self.depth_of(torch.arange(self.num_nodes, device=self.device))
        return int((depths[self.chain_ends] - depths).max())

    def depth_of(self, nodes: torch.Tensor) -> torch.Tensor:
        """Tokens from the root to each node (int64, any shape), -1 for a node of -1: int64."""
        return torch.bucketize(nodes, torch.tensor(self.level_offsets[:-1], device=nodes.device), right=True) - 1

    def has_choice(self, nodes: torch.Tensor) -> torch.Tensor:
        """Which nodes (int64, none -1) have several children: the token behind any other is forced. bool."""
        return self.child_offsets[nodes + 1] - self.child_offsets[nodes] > 1

    def prepare(self) -> None:
        """Make what is made on first use now: a CUDA graph may not wait for the device while it is captured."""
        _ = self.token_slots, self.levels

    def to(self, device: torch.device | str) -> ItemTrie:
        """The trie itself if it is on `device`, else a copy there, which makes what is made on first use anew."""
        if torch.device(device) == self.device:
            return self
        return replace(self, **{name: getattr(self, name).to(device) for name in ARRAYS})

    def is_leaf(self, nodes: torch.Tensor) -> torch.Tensor:
        """Which nodes (int64, any shape) have no children; a dead beam's -1 is not a leaf."""
        if not isinstance(nodes, torch.Tensor) or nodes.dtype != torch.int64:
            raise TypeError(f"nodes: expected an int64 tensor, got {getattr(nodes, 'dtype', type(nodes).__name__)}")
        known = nodes.clamp(min=0)
        return (nodes >= 0) & (self.child_offsets[known] == self.child_offsets[known + 1])

    def child(self, nodes: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The child of each node by a token, -1 where there is none: int64, of the shape of nodes and tokens (int64).

        A node of -1 has no children. Does not wait for the device.
        """
        known = nodes.clamp(min=0)
        low, end = self.child_offsets[known].long(), self.child_offsets[known + 1].long()
        # The children ascend by token: the first edge whose token is not smaller, by bisection.
        high = end
        for _ in range(self.max_children.bit_length()):
            middle = (low + high) // 2
            goes_on = low < high
            is_smaller = self.edge_tokens[middle.clamp(max=len(self.edge_tokens) - 1)] < tokens
            low = torch.where(goes_on & is_smaller, middle + 1, low)
            high = torch.where(goes_on & ~is_smaller, middle, high)
        edge = low.clamp(max=len(self.edge_tokens) - 1)
        found = (nodes >= 0) & (low < end) & (self.edge_tokens[edge] == tokens)
        return torch.where(found, low + 1, -1)

    def edges_below(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The edges to the children of nodes (int64 [rows], none -1), one node after another.

        Which row each belongs to, and the edges, int64 [edges]; in the order of rows, then tokens.
        """
        first_edges = self.child_offsets[nodes].long()
        counts = self.child_offsets[nodes + 1].long() - first_edges
        rows = torch.arange(len(nodes), device=nodes.device).repeat_interleave(counts)
        return rows, torch.arange(len(rows), device=nodes.device) + (first_edges - counts.cumsum(0) + counts)[rows]

    def items_at(self, node: int) -> torch.Tensor:
        """The items that end at a node, int64, ascending; none for an inner node."""
        require_int("node", node, minimum=0)
        if node >= self.num_nodes:
            raise ValueError(f"node: expected a node in [0, {self.num_nodes}), got {node}")
        first, last = self.item_offsets[node : node + 2].tolist()
        return self.item_ids[first:last].long()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; an existing file is replaced at once, never left half written."""
        write_arrays(path, {name: getattr(self, name) for name in ARRAYS})

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, memory_map: bool = False) -> ItemTrie:
        """Read a file that `save` wrote, onto the CPU. ValueError for a file that is no trie or is damaged.

        The trie has memory of its own: what happens to the file later does not touch it. With memory_map its arrays
        are the file's pages, shared by all processes that map it, and checked all the same. Then the file must not be
        written into while in use; `save` replaces it and does no harm. `to` another device makes copies.
        """
        return cls._from_arrays(**read_arrays(path, memory_map=memory_map))


def _offsets(counts: torch.Tensor) -> torch.Tensor:
    """int32 [n + 1]: the running sum of n counts, from 0."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
