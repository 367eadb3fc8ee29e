"""Semantic ids: an item as a short tuple of codes, close items sharing first codes. Built here where the data has none.

Item vectors come from co-occurrence in the training sequences (a truncated SVD of the shifted positive PMI matrix, as
in Levy and Goldberg 2014) or from a user's .npy; residual k-means turns them into codes, level by level, as TIGER
(arXiv 2305.05065) does with its RQ-VAE. This module knows nothing of tokens.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from .config import CatalogConfig
from .data import DataError, Dataset
from .ragged import Ragged

MAX_LEVELS = 25  # of the data: tokens name levels by letters, and one letter is kept for telling shared ids apart
ITEMS_A_CODE = 16  # on average, at least; where the catalogue is too small for it, fewer codes are used
UNSEEN_NOISE = 1e-3
DENSE_ITEMS = 256  # up to here a full SVD, which also knows what to do with a matrix of low rank


def given_ids(dataset: Dataset, config: CatalogConfig) -> list[tuple[int, ...]] | None:
    """The data's own semantic ids; None where they are to be built."""
    return None if config.rebuild_ids else dataset.items.semantic_ids


def build_semantic_ids(
    dataset: Dataset, config: CatalogConfig, *, training_sequences: Sequence[np.ndarray], seed: int = 0
) -> list[tuple[int, ...]]:
    """The semantic id of every item, told apart where config.separate_shared_ids says so: the data's, or built where it
    has none or config.rebuild_ids says so.

    Built ids see `training_sequences` only (dense item indexes), or config.vectors where that names a file.
    """
    semantic_ids = given_ids(dataset, config)
    if semantic_ids is not None and len(semantic_ids[0]) > MAX_LEVELS:
        raise DataError(
            f"{dataset.name}: column 'semantic_id': expected at most {MAX_LEVELS} levels, got {len(semantic_ids[0])}"
        )
    if semantic_ids is None:
        num_items = len(dataset.items)
        if config.vectors is None:
            vectors = cooccurrence_vectors(training_sequences, num_items, seed=seed)
        else:
            vectors = load_vectors(config.vectors, num_items)
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


def cooccurrence_vectors(
    sequences: Sequence[np.ndarray],
    num_items: int,
    dimensions: int = 64,
    window: int = 5,
    *,
    shift: float = 2.0,
    seed: int = 0,
) -> np.ndarray:
    """Item vectors of unit length from who occurs near whom: float32 [num_items, dimensions].

    The context of an item is another item together with its side, before or after, within `window` places of the same
    sequence and weighted by 1 / distance. PMI(item, context) - log(shift), cut at zero, is factorised by a truncated
    SVD into U S V^T; the vectors are U sqrt(S). Items that no sequence pairs with another get deterministic noise of
    length about 1e-3. Dimensions beyond the rank that the catalogue allows are zero.
    """
    rng = np.random.default_rng(seed)
    vectors = np.zeros((num_items, dimensions), dtype=np.float32)
    association = _shifted_positive_pmi(_count_contexts(sequences, num_items, window), shift)  # [I, 2 I]
    rank = min(dimensions, num_items - 1)
    if association.nnz and rank >= 1:
        start = rng.uniform(0.5, 1.5, size=num_items)
        with threadpool_limits(1):  # sums over threads come in any order
            if num_items <= DENSE_ITEMS:
                left, singular, _ = np.linalg.svd(association.toarray(), full_matrices=False)
                left, singular = left[:, :rank], singular[:rank]
            else:  # a fixed start makes ARPACK deterministic, unless it is asked for more than the matrix's rank
                left, singular, _ = svds(association, k=rank, v0=start)
        order = np.argsort(-singular)
        vectors[:, :rank] = left[:, order] * np.sqrt(np.maximum(singular[order], 0.0))

    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    seen = lengths > 1e-6
    noise = rng.normal(scale=UNSEEN_NOISE / np.sqrt(dimensions), size=vectors.shape)
    return np.where(seen, vectors / np.where(seen, lengths, 1.0), noise).astype(np.float32)


def load_vectors(path: str | Path, num_items: int) -> np.ndarray:
    """A user's item vectors, row i the item in row i of items.parquet: float32 [num_items, dimensions].

    Raises:
        DataError: no such file, not a .npy of real numbers [num_items, dimensions], NaN or infinity inside.
    """
    expected = f"a .npy file of real numbers [{num_items}, dimensions], one row an item of items.parquet"
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"vectors: {path}: expected {expected}, got a file that cannot be read so: {error}") from error
    if not isinstance(vectors, np.ndarray):
        raise DataError(f"vectors: {path}: expected {expected}, got an archive of several arrays")
    if not (np.issubdtype(vectors.dtype, np.floating) or np.issubdtype(vectors.dtype, np.integer)):
        raise DataError(f"vectors: {path}: expected {expected}, got values of type {vectors.dtype}")
    if vectors.ndim != 2 or vectors.shape[0] != num_items or vectors.shape[1] == 0:
        raise DataError(f"vectors: {path}: expected {expected}, got shape {list(vectors.shape)}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity and is refused below
        vectors = vectors.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise DataError(
            f"vectors: {path}: expected finite float32 numbers, got NaN or infinity in {len(bad)} rows; "
            f"the first: {', '.join(map(str, bad[:5]))}"
        )
    return vectors


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


def _count_contexts(sequences: Sequence[np.ndarray], num_items: int, window: int) -> sparse.csr_matrix:
    """[I, 2 I]: column j counts j after the item, column I + j counts j before it."""
    ragged = Ragged.of(sequences)
    flat, owner = ragged.flat(), np.repeat(np.arange(len(ragged)), ragged.lengths)
    after = sparse.csr_matrix((num_items, num_items), dtype=np.float64)
    for distance in range(1, window + 1):
        first, second = flat[:-distance], flat[distance:]
        pair = (owner[:-distance] == owner[distance:]) & (first != second)
        weights = np.full(int(pair.sum()), 1.0 / distance)
        after = after + sparse.csr_matrix((weights, (first[pair], second[pair])), shape=after.shape)
    return sparse.hstack([after, after.T], format="csr")


def _shifted_positive_pmi(counts: sparse.csr_matrix, shift: float) -> sparse.csr_matrix:
    pairs = counts.tocoo()
    by_item = np.asarray(counts.sum(axis=1)).ravel()
    by_context = np.asarray(counts.sum(axis=0)).ravel()
    pmi = np.log(pairs.data * counts.sum() / (by_item[pairs.row] * by_context[pairs.col])) - np.log(shift)
    kept = pmi > 0
    return sparse.csr_matrix((pmi[kept], (pairs.row[kept], pairs.col[kept])), shape=counts.shape)


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
