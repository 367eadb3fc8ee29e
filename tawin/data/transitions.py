"""What follows what in the training data, counted: a second opinion that evaluation and serving mix with the model's.

The counts are those of the baseline of that name (`baselines`), as shares. A catalogue carries them where
`evaluation.counts_weight` asks for them; `ranking.recommend` mixes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse

from ..run.atomic import replacing_file
from .columns import DataError
from .ragged import Ragged, count_within

NEAR = 5  # places within which two items of a sequence are a pair
BACKWARD = 0.5  # weight of a pair read from its later item to its earlier one
DAMPING = 0.3  # power of the popularity by which a candidate's count is divided
LAST = 5  # items of the history that counts look at
COUNTS_DECAY = 0.5  # weight of an item of the history against the one after it


@dataclass(frozen=True, eq=False)
class Transitions:
    """Counted from training sequences by `count_transitions`."""

    matrix: sparse.csr_matrix
    """fp32 [items, items], row i the damped counts of what stands near item i."""

    def shares(self, histories: Ragged) -> sparse.csr_matrix:
        """Of each history's scores, every item's share: fp32 [B, items]; rows sum to 1, or are empty."""
        recent = histories.last(LAST)
        age = np.repeat(recent.lengths, recent.lengths) - 1 - count_within(recent.lengths)
        rows = np.repeat(np.arange(len(recent)), recent.lengths)
        weights = sparse.csr_matrix(
            ((COUNTS_DECAY**age).astype(np.float32), (rows, recent.flat())), shape=(len(recent), self.matrix.shape[0])
        )
        scores = (weights @ self.matrix).tocsr()
        totals = np.asarray(scores.sum(axis=1)).ravel()
        return sparse.diags(1.0 / np.where(totals > 0, totals, 1.0)).astype(np.float32) @ scores

    def save(self, path: Path) -> None:
        """The file appears whole or not at all."""
        matrix = self.matrix
        with replacing_file(path) as part:
            save_file({"values": matrix.data, "items": matrix.indices, "bounds": matrix.indptr}, part)

    @classmethod
    def load(cls, path: Path, num_items: int) -> Transitions:
        """What `save` wrote; DataError where it is damaged or another catalogue's."""
        try:
            parts = load_file(path)
            matrix = sparse.csr_matrix((parts["values"], parts["items"], parts["bounds"]), shape=(num_items, num_items))
            matrix.check_format(full_check=True)
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise DataError(f"{path}: expected the counts of {num_items} items, cannot read them: {error}") from error
        return cls(matrix)


def count_transitions(training: Ragged, num_items: int) -> Transitions:
    """training: every user's training items as dense indexes, oldest first."""
    return Transitions(damped_counts(training, num_items))


def damped_counts(training: Ragged, num_items: int) -> sparse.csr_matrix:
    """[items, items] fp32: `near_counts`, each divided by powers of the popularity of both items."""
    taken = np.bincount(training.flat(), minlength=num_items)
    popular = np.maximum(taken, 1).astype(np.float32)
    return (sparse.diags(popular**-0.5) @ near_counts(training, num_items) @ sparse.diags(popular**-DAMPING)).tocsr()


def near_counts(training: Ragged, num_items: int) -> sparse.csr_matrix:
    """[items, items] fp32: 1 / distance for each pair within NEAR places; a pair read backwards weighs BACKWARD."""
    flat, owners = training.flat(), np.repeat(np.arange(len(training)), training.lengths)
    ahead = sparse.csr_matrix((num_items, num_items), dtype=np.float32)
    for distance in range(1, NEAR + 1):
        same = owners[:-distance] == owners[distance:]
        pairs = (flat[:-distance][same], flat[distance:][same])
        weights = np.full(int(same.sum()), 1.0 / distance, dtype=np.float32)
        ahead = ahead + sparse.csr_matrix((weights, pairs), shape=ahead.shape)
    return (ahead + BACKWARD * ahead.T).tocsr()
