"""What needs no training, ranked for the same users as the model: popularity, counts, item-kNN, nearest vector.

`tawin train` calls it once a run: a trained model that does not beat these is not worth its training. All of them are
sums over sparse matrices of the training sequences, seconds for a million interactions. Ties are broken by popularity,
then by the item's index, so that an item without a score never wins by its place in a file.

Sources: counts of what is taken near each other, weighted by distance and damped by popularity, are the heuristics that
arXiv 2605.07125 finds level with generative recommenders; item-kNN is the cosine of Sarwar et al., WWW 2001.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ..data.dataset import Examples
from ..data.ragged import Ragged, count_within
from ..data.transitions import COUNTS_DECAY, LAST, damped_counts

Scores = Callable[[Ragged], np.ndarray]
"""Of histories of dense item indexes, oldest first: fp32 [histories, items], higher is better."""

POPULARITY, COUNTS, ITEM_KNN, NEAREST_VECTOR = "popularity", "counts", "item_knn", "nearest_vector"

LABELS = {
    POPULARITY: "popularity",
    COUNTS: "counts",
    ITEM_KNN: "item-kNN",
    NEAREST_VECTOR: "nearest vector",
}

KNN_LAST, KNN_DECAY = 10, 0.8
KNN_ITEMS = 100  # a user's last training items that item-kNN pairs with each other: its work grows with their square
CELLS = 2**23  # scores of a chunk of users, 32 MiB


@dataclass(frozen=True)
class Baselines:
    """Built from training sequences by `build_baselines`."""

    scores: dict[str, Scores]
    place: np.ndarray
    """int64 [items], each item's place by popularity, ties by index: what breaks ties of the scores."""

    def ranks(self, name: str, examples: Examples, *, exclude_history: bool) -> np.ndarray:
        """Zero-based rank of each target among all items, int64 [N]; -1 for a target that exclude_history leaves out.

        exclude_history: no item that the user has seen is recommended, as in `tawin.evaluate.ranking`.
        """
        histories = Ragged.of(examples.histories)
        seen = histories if examples.seen is None else examples.seen
        ranks = np.full(len(examples), -1, dtype=np.int64)
        step = max(1, CELLS // len(self.place))
        for first in range(0, len(examples), step):
            rows = slice(first, first + step)
            scores, targets = self.scores[name](histories[rows]), examples.targets[rows]
            if exclude_history:
                left_out = seen[rows]
                scores[np.repeat(np.arange(len(scores)), left_out.lengths), left_out.flat()] = -np.inf
            own = np.take_along_axis(scores, targets[:, None], axis=1)  # [n, 1]
            above = (scores > own) | ((scores == own) & (self.place < self.place[targets][:, None]))
            ranks[rows] = np.where(own[:, 0] == -np.inf, -1, above.sum(axis=1))
        return ranks


def build_baselines(training: Ragged, num_items: int, vectors: np.ndarray | None = None) -> Baselines:
    """All baselines that the data allows.

    Args:
        training: every user's training items as dense indexes, oldest first.
        num_items: items of the catalogue.
        vectors: real [items, dimensions], of texts or of the user's own; None: no `nearest_vector`.
    """
    taken = np.bincount(training.flat(), minlength=num_items)
    place = np.empty(num_items, dtype=np.int64)
    place[np.lexsort((np.arange(num_items), -taken))] = np.arange(num_items)
    scores: dict[str, Scores] = {
        POPULARITY: lambda histories: np.tile(taken.astype(np.float32), (len(histories), 1)),
        COUNTS: _summed(damped_counts(training, num_items), LAST, COUNTS_DECAY),
        ITEM_KNN: _summed(item_cosines(training, num_items), KNN_LAST, KNN_DECAY),
    }
    if vectors is not None:
        scores[NEAREST_VECTOR] = _nearest(vectors)
    return Baselines(scores, place)


def item_cosines(training: Ragged, num_items: int) -> sparse.csr_matrix:
    """[items, items] fp32: users who took both, over the root of the product of those who took each; diagonal 0."""
    recent = training.last(KNN_ITEMS)
    users = np.repeat(np.arange(len(recent)), recent.lengths)
    taken = sparse.csr_matrix(
        (np.ones(len(users), dtype=np.float32), (users, recent.flat())), shape=(len(recent), num_items)
    )
    taken.data[:] = 1.0  # an item that a user took twice counts once
    both = (taken.T @ taken).tocsr()
    norms = sparse.diags(np.maximum(np.asarray(taken.sum(axis=0)).ravel(), 1.0) ** -0.5)
    both.setdiag(0.0)
    both.eliminate_zeros()
    return (norms @ both @ norms).tocsr()


def _summed(weights: sparse.csr_matrix, last: int, decay: float) -> Scores:
    """Rows of `weights` summed over the last items of a history, the one before the last weighing `decay` and so on."""

    def scores(histories: Ragged) -> np.ndarray:
        recent = histories.last(last)
        age = np.repeat(recent.lengths, recent.lengths) - 1 - count_within(recent.lengths)
        users = np.repeat(np.arange(len(recent)), recent.lengths)
        values = (decay**age).astype(np.float32)
        picked = sparse.csr_matrix((values, (users, recent.flat())), shape=(len(recent), weights.shape[0]))
        return np.asarray((picked @ weights).toarray(), dtype=np.float32)

    return scores


def _nearest(vectors: np.ndarray) -> Scores:
    """Cosine to the last item of the history, which is not recommended again; 0 for all items without a history."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    unit = unit.astype(np.float32)

    def scores(histories: Ragged) -> np.ndarray:
        found = np.zeros((len(histories), len(unit)), dtype=np.float32)
        known = np.flatnonzero(histories.lengths > 0)
        last = histories.take(known).at(-1)
        found[known] = unit[last] @ unit.T
        found[known, last] = -1.0
        return found

    return scores
