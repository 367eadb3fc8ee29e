"""Where new tokens of items begin: at what is known of the items, instead of at random.

A token begins at the mean of the vectors of the items that have it, projected to the size of the model's embeddings and
brought to their mean and spread. One token per item, begun so, is what makes the small decoder strong in a few epochs:
docs/LOG.md has the figures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .catalog import Catalog


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
