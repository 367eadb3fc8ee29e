"""Item vectors: what an item is like, before anything is trained.

Semantic ids are built from them, and new tokens begin at them (`token_vectors`).

They come from co-occurrence in the training sequences (a truncated SVD of the shifted positive PMI matrix, as in Levy
and Goldberg 2014), from titles by an encoder (`text_encoder`), from a user's .npy, or from several of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from ..config import CatalogConfig
from ..config.data import VectorSource
from ..data.dataset import DataError, Dataset
from ..data.ragged import Ragged
from .text_encoder import title_vectors

UNSEEN_NOISE = 1e-3
MAX_DIMENSIONS = 128  # from co-occurrence: more take minutes and hold noise
DENSE_ITEMS = 256  # up to here a full SVD, which also knows what to do with a matrix of low rank


def item_vectors(
    dataset: Dataset,
    config: CatalogConfig,
    *,
    training_sequences: Sequence[np.ndarray],
    dimensions: int = 64,
    seed: int = 0,
    texts: np.ndarray | None = None,
) -> np.ndarray:
    """What the items of a dataset are like, float32 [items, any number of dimensions], from config.vector_sources.

    Args:
        training_sequences: dense item indexes; all that vectors from co-occurrence see.
        dimensions: of the vectors from co-occurrence.
        texts: what `title_vectors` gave for the dataset before; None: it is asked where it has to be.
    """
    parts = vectors_by_source(
        dataset, config, training_sequences=training_sequences, dimensions=dimensions, seed=seed, texts=texts
    )
    return joined(list(parts.values()))


def vectors_by_source(
    dataset: Dataset,
    config: CatalogConfig,
    *,
    training_sequences: Sequence[np.ndarray],
    dimensions: int = 64,
    seed: int = 0,
    texts: np.ndarray | None = None,
) -> dict[VectorSource, np.ndarray]:
    """The same, those of each source by themselves: float32 [items, its dimensions]."""
    makers: dict[VectorSource, Callable[[], np.ndarray]] = {
        "cooccurrence": lambda: cooccurrence_vectors(training_sequences, len(dataset.items), dimensions, seed=seed),
        "text": lambda: title_vectors(dataset, str(config.text_encoder)) if texts is None else texts,
        "file": lambda: load_vectors(str(config.vectors), len(dataset.items)),
    }
    return {source: makers[source]() for source in config.vector_sources}


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One as it is; several at unit length, side by side."""
    return parts[0] if len(parts) == 1 else np.concatenate([of_unit_length(part) for part in parts], axis=1)


def of_unit_length(vectors: np.ndarray) -> np.ndarray:
    """Each vector so, but for those that say nothing: noise stays as short as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 10 * UNSEEN_NOISE * lengths.max(), lengths, 1.0)


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
