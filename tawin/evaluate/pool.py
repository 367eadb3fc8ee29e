"""The items that a search may find at all: every item, or those of a request, for all its prompts.

A request for some items is searched on a trie of these alone: its beams are spent on nothing else, and the log p of an
item over the whole vocabulary does not depend on what else is in the trie. Where log p is over the children of a
node (`normalizer="trie"`), it does; then the whole trie is searched with the other items left out. Called by
`ranking.recommend`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tawin_kernels import ItemTrie
from tawin_kernels.types import Normalizer
from torch import Tensor

from ..catalog.catalog import Catalog


@dataclass(frozen=True, eq=False)
class Pool:
    """What is searched. `pool_of` makes it."""

    trie: ItemTrie
    rows: Tensor | None  # int64 [items of the trie], rows of the catalogue; None: these are the trie's own
    places: np.ndarray | None  # int64 [items of the catalogue], their place in the trie, -1 = not in it; None likewise
    others: np.ndarray | None  # int64, rows that are in the trie and must not be found; None: none are

    def items(self, found: Tensor) -> Tensor:
        """int64, of the shape of found: rows of the catalogue, -1 = missing."""
        return found if self.rows is None else torch.where(found >= 0, self.rows[found.clamp_min(0)], -1)

    def left_out(self, excluded: Sequence[np.ndarray] | None, prompts: int) -> Sequence[np.ndarray] | None:
        """Items of the trie that each prompt must not get, from rows of the catalogue."""
        if self.places is not None:
            if excluded is None:
                return None
            placed = [self.places[rows] for rows in excluded]
            return [places[places >= 0] for places in placed]
        if self.others is None:
            return excluded
        if excluded is None:
            return [self.others] * prompts
        return [np.concatenate((self.others, rows)) for rows in excluded]


def pool_of(catalog: Catalog, among: np.ndarray | None, normalizer: Normalizer, *, scored: bool = False) -> Pool:
    """among: int64, ascending, distinct rows of the catalogue, None: all. scored: every item is scored, none searched.

    Raises:
        ValueError: no item, or rows that the catalogue does not have, or that are not ascending.
    """
    if among is None:
        return Pool(catalog.trie, None, None, None)
    if len(among) == 0 or among[0] < 0 or among[-1] >= catalog.num_items or (np.diff(among) <= 0).any():
        raise ValueError(
            f"among: expected distinct items in [0, {catalog.num_items}), ascending, got {len(among)}: {among[:5]}..."
        )
    if scored or normalizer == "trie":
        others = np.setdiff1d(np.arange(catalog.num_items), among)
        return Pool(catalog.trie, None, None, others)
    rows = torch.from_numpy(among.astype(np.int64, copy=False)).to(catalog.token_ids.device)
    tokens = catalog.token_ids[rows].cpu()
    trie = ItemTrie.from_sequences(tokens, lengths=(tokens >= 0).sum(1)).to(catalog.token_ids.device)
    places = np.full(catalog.num_items, -1, dtype=np.int64)
    places[among] = np.arange(len(among))
    return Pool(trie, rows, places, None)
