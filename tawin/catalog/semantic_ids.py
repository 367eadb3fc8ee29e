"""Semantic ids: an item as a short tuple of codes, close items sharing first codes. Built here where the data has none.

Residual k-means turns item vectors (`item_vectors`) into codes, level by level, as TIGER (arXiv 2305.05065) does with
its RQ-VAE. This module knows nothing of tokens.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from ..config import CatalogConfig
from ..data.dataset import DataError, Dataset
from .item_vectors import item_vectors

MAX_LEVELS = 25  # of the data: tokens name levels by letters, and one letter is kept for telling shared ids apart
ITEMS_A_CODE = 16  # on average, at least; where the catalogue is too small for it, fewer codes are used


def given_ids(dataset: Dataset, config: CatalogConfig) -> list[tuple[int, ...]] | None:
    """The data's own semantic ids; None where they are to be built."""
    return None if config.rebuild_ids else dataset.items.semantic_ids


def build_semantic_ids(
    dataset: Dataset,
    config: CatalogConfig,
    *,
    training_sequences: Sequence[np.ndarray],
    seed: int = 0,
    texts: np.ndarray | None = None,
) -> list[tuple[int, ...]]:
    """The semantic id of every item, told apart where config.separate_shared_ids says so: the data's, or built where it
    has none or config.rebuild_ids says so.

    Built ids see item vectors alone: `training_sequences` (dense item indexes) and `texts` as in `item_vectors`.
    """
    semantic_ids = given_ids(dataset, config)
    if semantic_ids is not None and len(semantic_ids[0]) > MAX_LEVELS:
        raise DataError(
            f"{dataset.name}: column 'semantic_id': expected at most {MAX_LEVELS} levels, got {len(semantic_ids[0])}"
        )
    if semantic_ids is None:
        vectors = item_vectors(dataset, config, training_sequences=training_sequences, seed=seed, texts=texts)
        codes = residual_kmeans(vectors, config.levels, config.codes, seed)
        semantic_ids = [tuple(row) for row in codes.tolist()]
    return separate_shared_ids(semantic_ids) if config.separate_shared_ids else semantic_ids


def separate_shared_ids(semantic_ids: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Appends a further code, 0, 1, ... in item order, to the ids that several items share, and only to these.

    All the items that share an id get one, so that no id becomes the beginning of another (TIGER, section 3.1).
    """
    counts = Counter(semantic_ids)
    next_code: dict[tuple[int, ...], int] = defaultdict(int)
    separated = []
    for semantic_id in semantic_ids:
        if counts[semantic_id] > 1:
            separated.append((*semantic_id, next_code[semantic_id]))
            next_code[semantic_id] += 1
        else:
            separated.append(semantic_id)
    return separated


def codes_used(num_items: int, levels: int, codes: int) -> int:
    """Codes a level that residual_kmeans uses: at most `codes`, fewer where the catalogue is small.

    About one code for 16 items, but enough that codes ** levels reaches the catalogue's size (then ids can be
    distinct).
    """
    enough = 1
    while enough**levels < num_items:
        enough += 1
    return min(codes, max(enough, num_items // ITEMS_A_CODE))


def residual_kmeans(vectors: np.ndarray, levels: int, codes: int, seed: int) -> np.ndarray:
    """Codes of items, level by level, each level by k-means on what the levels before left over: int64 [items, levels].

    K = codes_used(items, levels, codes). An item takes the nearest centre that has room for it; a full centre keeps the
    nearest items. Room is such that

    * no code of the first level holds more than about twice its share;
    * under one prefix never more items gather than the codes of the levels below can tell apart, so all ids are
      distinct if items <= K ** levels, and otherwise the items are spread evenly;
    * every one of the K codes of every level is used.

    Deterministic for a seed.
    """
    items = len(vectors)
    if vectors.ndim != 2 or items == 0:
        raise ValueError(f"vectors: expected [items, dimensions] with at least one item, got {list(vectors.shape)}")
    if levels < 1 or codes < 1:
        raise ValueError(f"levels, codes: expected at least 1 each, got {levels} and {codes}")
    used = codes_used(items, levels, codes)
    # k-means does not depend on the scale, and squares of scaled values cannot overflow.
    residuals = (vectors / max(float(np.abs(vectors).max()), np.finfo(np.float32).tiny)).astype(np.float32)
    result = np.zeros((items, levels), dtype=np.int64)
    prefixes = np.zeros(items, dtype=np.int64)  # number of the group of items with equal codes so far
    for level in range(levels):
        sizes = np.bincount(prefixes)  # [groups]
        room = np.maximum(-(-sizes // used), used ** (levels - 1 - level))  # [groups]
        if level == 0:
            room = np.minimum(room, -(-2 * items // used))
        distances = _distances_to_centres(residuals, used, seed + level)  # [I, K]
        labels = _assign_with_room(distances, prefixes, room)
        labels = _fill_empty_codes(distances, labels)
        result[:, level] = labels
        residuals = residuals - _means(residuals, labels, used)[labels]
        prefixes = np.unique(prefixes * used + labels, return_inverse=True)[1]
    return result


def _distances_to_centres(points: np.ndarray, codes: int, seed: int) -> np.ndarray:
    """Squared distances to the centres of a k-means, float32 [items, codes]."""
    with warnings.catch_warnings(), threadpool_limits(1):  # sums over threads come in any order
        # Fewer distinct points than codes is fine here: the codes left empty are filled afterwards.
        warnings.simplefilter("ignore", ConvergenceWarning)
        centres = KMeans(codes, n_init=1, max_iter=50, random_state=seed).fit(points).cluster_centers_
    squares = (points**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1)
    return squares - 2 * points @ centres.T


def _assign_with_room(distances: np.ndarray, groups: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Codes, int64 [items], with at most room[g] items of group g on each code.

    Deferred acceptance (Gale and Shapley): items ask codes in the order of distance, a code keeps the nearest it has
    room for and turns the others away. No item and code that prefer each other are left apart, whatever the order of
    asking.
    """
    items, codes = distances.shape
    preferences = np.argsort(distances, axis=1, kind="stable")
    everyone = np.arange(items)
    asked = np.zeros(items, dtype=np.int64)  # how many codes have turned the item away
    while True:
        labels = preferences[everyone, asked]
        places = groups * codes + labels
        order = np.lexsort((distances[everyone, labels], places))
        ordered = places[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        rank = everyone - np.repeat(
            starts, np.diff(np.r_[starts, items])
        )  # among the items that ask for the same place
        turned_away = order[rank >= room[groups[order]]]
        if len(turned_away) == 0:
            return labels
        asked[turned_away] += 1


def _fill_empty_codes(distances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Gives each empty code the nearest item among those that do not sit alone on theirs."""
    labels = labels.copy()
    sizes = np.bincount(labels, minlength=distances.shape[1])
    for code in np.flatnonzero(sizes == 0):
        movable = np.flatnonzero(sizes[labels] > 1)
        item = movable[np.argmin(distances[movable, code])]
        sizes[labels[item]] -= 1
        sizes[code] += 1
        labels[item] = code
    return labels


def _means(points: np.ndarray, labels: np.ndarray, codes: int) -> np.ndarray:
    sums = np.zeros((codes, points.shape[1]), dtype=np.float32)
    np.add.at(sums, labels, points)
    return sums / np.bincount(labels, minlength=codes)[:, None]
