"""A catalogue goes on with a newer log: known items keep their semantic ids, new ones get the nearest free ones.

Items are matched by the log's own ids. One token an item and titles need nothing of this: their tokens are named by
what they stand for, so `build_catalog` finds a known item's again and adds a new one's. Called by `train.job`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.columns import DataError
from ..data.source_ids import places_of
from .catalog import Catalog
from .semantic_ids import separate_shared_ids

SemanticId = tuple[int, ...]


@dataclass(frozen=True)
class Extension:
    """How the items of a newer log lie to those of a catalogue."""

    places: np.ndarray
    """int64 [items of the log], the place of each in the catalogue, -1 = new."""
    gone: int
    """Items of the catalogue that the log does not have."""

    @property
    def is_new(self) -> np.ndarray:
        """bool [items of the log]"""
        return self.places < 0

    def counts(self) -> dict[str, int]:
        new = int(self.is_new.sum())
        return {"known": len(self.places) - new, "new": new, "gone": self.gone}


def match_items(start: Catalog, names: Sequence[str], where: str) -> Extension:
    """Finds each of `names`, the log's own ids, in a catalogue; DataError, which `where` begins, if none is there."""
    places = places_of(names, start.names)
    known = int((places >= 0).sum())
    if known == 0:
        raise DataError(
            f"{where}: expected a later log of the items that the run was trained on, like "
            f"{', '.join(start.names[:3])}, got {len(names):,} others, like {', '.join(names[:3])}"
        )
    return Extension(places, start.num_items - known)


def extended_ids(
    start: Sequence[SemanticId],
    extension: Extension,
    *,
    vectors: np.ndarray | None = None,
    given: Sequence[SemanticId] | None = None,
    separate: bool = True,
) -> list[SemanticId]:
    """The semantic id of every item of the log: its own where `start` has it, else the nearest that is free.

    A level's centres are the means of what the levels before leave over of the known items' vectors. A new item takes
    the nearest centre of each level; where that id is taken, the next nearest, the last level's first. Ids of items
    that are gone stay taken. Where none is free, a new item stands beside those of the nearest: with one code more
    where they are told apart so, else under the same id.

    Args:
        start: the ids of the catalogue, the code that tells shared ids apart included.
        vectors: real [items of the log, dimensions], of one kind for known and new items; not needed with `given`.
        given: the data's own ids, which new items take.
        separate: new items that `given` has under one id are told apart, as known ones are.
    """
    levels = min(map(len, start)) if given is None else len(given[0])
    next_code: dict[SemanticId, int | None] = {}  # of each id that is taken: the code of one more item there, if any
    for own in start:
        next_code[own[:levels]] = None if len(own) == levels else max(own[-1] + 1, next_code.get(own[:levels]) or 0)

    def beside(taken: SemanticId) -> SemanticId:
        code = next_code[taken]
        if code is None:
            return taken
        next_code[taken] = code + 1
        return (*taken, code)

    ids = [() if place < 0 else start[place] for place in extension.places.tolist()]
    new, known = np.flatnonzero(extension.is_new).tolist(), np.flatnonzero(~extension.is_new).tolist()
    if given is not None:
        own_ids = [given[row] for row in new]
        told_apart = separate_shared_ids(own_ids) if separate else own_ids
        for row, own, apart in zip(new, own_ids, told_apart, strict=True):
            ids[row] = beside(own) if own in next_code else apart
        return ids
    if len(new) == 0:
        return ids
    if vectors is None:
        raise ValueError("vectors: expected those of all items, where new ones have no ids of the data, got None")
    codes = np.array([ids[row][:levels] for row in known])  # [known, levels]
    centres = _centres(codes, vectors[known])
    for row in new:
        free = next((way for way in _nearest_first(vectors[row], centres) if way not in next_code), None)
        if free is not None:
            next_code[free] = None
        ids[row] = free or beside(next(way for way in _nearest_first(vectors[row], centres) if way in next_code))
    return ids


def _centres(codes: np.ndarray, vectors: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """A level's codes that occur, ascending, int64 [K], and the mean of what is left over of their items, [K, D]."""
    left, found = vectors.astype(np.float64), []
    for level in codes.T:
        names, slots = np.unique(level, return_inverse=True)
        sums = np.zeros((len(names), left.shape[1]))
        np.add.at(sums, slots, left)
        means = sums / np.bincount(slots)[:, None]
        left = left - means[slots]
        found.append((names, means))
    return found


def _nearest_first(vector: np.ndarray, centres: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[SemanticId]:
    """All ids, by the nearest centre of the first level, then of the next."""
    if not centres:
        yield ()
        return
    names, means = centres[0]
    for place in np.argsort(((vector - means) ** 2).sum(axis=1), kind="stable"):
        for rest in _nearest_first(vector - means[place], centres[1:]):
            yield (int(names[place]), *rest)
