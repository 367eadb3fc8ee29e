"""Where new tokens of items begin: at what is known of the items, instead of at random.

In a model that knows no item, a token begins at the mean of the vectors of the items that have it, projected to the
size of the model's embeddings and brought to their mean and spread. One token per item, begun so, is what makes the
small decoder strong in a few epochs. In a model that knows items already, a new one begins where its vector would be
among theirs: `place_among_known`. docs/LOG.md has the figures of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn

from .catalog import Catalog
from .item_vectors import of_unit_length

PENALTIES = np.logspace(-2, 3, 6)  # of the ridge regressions; leave-one-out picks one


@torch.no_grad()
def place_among_known(
    model: Any, catalog: Catalog, parts: Sequence[np.ndarray], *, wanted: np.ndarray, known: np.ndarray
) -> None:
    """Set the rows of the wanted items, in the embedding and the LM head, to what their vectors say by the known ones.

    A ridge regression from vectors to rows is fitted on the known items, one for each set of sources that some wanted
    items have: an item that nobody took yet has a text, but no co-occurrence. Regressions draw towards the mean, where
    an item is recommended to nobody: what they give is brought to the known rows' mean distance from their mean. An
    item without any vector gets their mean.

    Args:
        catalog: of one token an item.
        parts: real [items, D], the vectors of each source.
        wanted, known: bool [items].
    """
    if not wanted.any() or not known.any():
        return
    unit = [of_unit_length(part) for part in parts]
    has = np.stack([np.linalg.norm(part, axis=1) > 0.5 for part in unit], axis=1)  # [items, sources]
    tokens = catalog.token_ids[:, 0].cpu()
    weights: list[Any] = [part.weight for part in (model.get_input_embeddings(), model.get_output_embeddings())]
    for weight in weights[: 1 if weights[0] is weights[1] else 2]:
        rows = weight[tokens].float().numpy(force=True)  # [items, H]
        for sources in np.unique(has[wanted], axis=0):
            chosen = np.flatnonzero(wanted & (has == sources).all(axis=1))
            fitted = known & has[:, sources].all(axis=1)
            vectors = [part for part, is_used in zip(unit, sources, strict=True) if is_used]
            found = _regressed(vectors, rows, fitted, chosen) if vectors and fitted.sum() > 1 else rows[known].mean(0)
            weight[tokens[chosen]] = torch.from_numpy(np.broadcast_to(found, rows[chosen].shape).copy()).to(weight)


def _regressed(vectors: list[np.ndarray], rows: np.ndarray, fitted: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """[chosen, H]: by a ridge regression on the fitted items, as far from the mean of their rows as these are."""
    inputs = np.concatenate(vectors, axis=1)
    found = RidgeCV(alphas=PENALTIES).fit(inputs[fitted], rows[fitted]).predict(inputs[chosen])
    mean = rows[fitted].mean(0)
    spread, found_spread = (np.linalg.norm(some - mean, axis=1).mean() for some in (rows[fitted], found))
    return mean + (found - mean) * spread / max(found_spread, np.finfo(np.float32).tiny)


@torch.no_grad()
def begin_at_vectors(
    model: Any, catalog: Catalog, vectors: np.ndarray, *, known: int | None = None, seed: int = 0
) -> None:
    """Set the rows of the catalogue's tokens, in the embedding and the LM head.

    Args:
        vectors: [items, D], of the items of the catalogue.
        known: how many rows, from the first on, a pretrained model was trained with: theirs are the mean and spread of
            each dimension, and tokens among them stay as they are. None: the rows were all drawn at random, around 0.
        seed: of the projection to more dimensions than D.
    """
    tokens, means = _token_means(catalog, torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32)))
    if known is not None:
        is_new = tokens >= known
        tokens, means = tokens[is_new], means[is_new]
    if len(tokens) == 0:  # a model of an earlier run, say, that has them all
        return
    embeddings: list[nn.Module] = [model.get_input_embeddings(), model.get_output_embeddings()]
    weights: list[Any] = [part.weight for part in embeddings]
    for weight in weights[: 1 if weights[0] is weights[1] else 2]:
        projected = _projected(means, weight.shape[1], seed)
        projected /= projected.std().clamp_min(torch.finfo(torch.float32).tiny)
        if known is None:
            weight[tokens] = projected * weight.std()
        else:
            rows = weight[:known].float()
            weight[tokens] = (rows.mean(0) + projected * rows.std(0)).to(weight.dtype)


def _token_means(catalog: Catalog, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of the catalogue, ascending, int64 [U], and the mean vector of the items that have each, [U, D]."""
    table = catalog.token_ids.cpu()  # [items, L]
    item, level = (table >= 0).nonzero(as_tuple=True)
    tokens, slots = table[item, level].unique(return_inverse=True)
    sums = vectors.new_zeros(len(tokens), vectors.shape[1]).index_add_(0, slots, vectors[item])
    return tokens, sums / torch.bincount(slots)[:, None]


def _projected(vectors: Tensor, size: int, seed: int) -> Tensor:
    """[N, size]: as near as that many dimensions allow, or turned at random into more of them, distances kept."""
    dimensions = vectors.shape[1]
    if dimensions == size:
        return vectors.clone()
    if dimensions > size:
        _, directions = torch.linalg.eigh((vectors.T @ vectors).double())  # ascending
        return vectors @ directions[:, -size:].flip(1).to(vectors.dtype)
    random = torch.randn(size, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vectors @ torch.linalg.qr(random).Q.T.to(vectors.dtype)
