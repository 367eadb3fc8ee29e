"""Synthetic interactions with learnable structure and a known ceiling: what the best possible recommender reaches.

Items fall into clusters. A user's next item follows from the last two items, by a mixture of three sources:

    p(next | before, last) = a 1[next = companion(last)]
                           + b T[c(last), c(next)] q(next) + (1 - a - b) T[c(before), c(next)] q(next)

with c the cluster of an item, T the transitions between clusters (a few likely successors each), q the popularity of
an item inside its cluster (Zipf) and companion(i) a fixed item of a likely successor cluster. The first item is drawn
by popularity; the second has no item before the last, so that T[c(last)] takes the third source's share. Because the
model is known, Recall@K of the best possible recommender is computed exactly rather than estimated by training one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import KS, SyntheticConfig
from .dataset import Dataset, Items
from .ragged import Ragged

COMPANION_SHARE = 0.25
LAST_SHARE = 0.6
SUCCESSOR_SHARES = (0.7, 0.2, 0.1)
CLUSTER_SKEW = 0.5
ITEM_SKEW = 1.5

# fmt: off
_NOUNS = (
    "lamp", "kettle", "chair", "notebook", "drill", "backpack", "puzzle", "guitar", "tent", "camera",
    "teapot", "blanket", "bicycle", "mirror", "printer", "clock", "wallet", "helmet", "telescope", "candle",
    "toaster", "hammock", "violin", "compass", "umbrella", "bookshelf", "skateboard", "microphone",
    "rucksack", "vase",
)
_ADJECTIVES = (
    "red", "oak", "quiet", "folding", "silver", "small", "bright", "vintage", "woven", "heavy", "blue",
    "travel", "soft", "modern", "copper", "green", "sturdy", "round", "slim", "painted", "royal", "simple",
    "nordic", "foldable", "glass", "yellow", "classic", "tiny", "rugged", "ivory",
)
# fmt: on


@dataclass(frozen=True, eq=False)
class _Model:
    """The distribution that the sequences are drawn from."""

    clusters: np.ndarray  # int64 [I]
    cluster_popularity: np.ndarray  # float64 [C], sums to 1
    popularity: np.ndarray  # float64 [I], sums to 1 in each cluster
    transitions: np.ndarray  # float64 [C, C], rows sum to 1
    companions: np.ndarray  # int64 [I]

    def next_item(self, before: np.ndarray, last: np.ndarray) -> np.ndarray:
        """p(next | before, last): float64 [N, I]. Where there is no item before the last, before = last."""
        last_clusters, before_clusters = self.clusters[last], self.clusters[before]
        by_cluster = LAST_SHARE * self.transitions[last_clusters]  # [N, C]
        by_cluster += (1 - COMPANION_SHARE - LAST_SHARE) * self.transitions[before_clusters]
        probabilities = by_cluster[:, self.clusters] * self.popularity
        probabilities[np.arange(len(last)), self.companions[last]] += COMPANION_SHARE
        return probabilities


def make_synthetic(config: SyntheticConfig, seed: int) -> Dataset:
    """Draws users' sequences from a model that itself is drawn from `seed`.

    Lengths are uniform in config.min_length..max_length. `best_recall` of the result maps each K of KS to the expected
    Recall@K on the test items of a recommender that knows the model: the mean over users of the sum of the K largest
    next-item probabilities. The items carry titles and no semantic ids (these are built from the interactions).
    """
    rng = np.random.default_rng(seed)
    model, titles = _draw_model(config, rng)
    lengths = rng.integers(config.min_length, config.max_length + 1, size=config.num_users)
    drawn = _draw_sequences(model, config.num_users, config.max_length, rng)  # [U, max_length]
    starts = np.arange(config.num_users) * config.max_length
    sequences = Ragged(drawn.reshape(-1), starts, starts + lengths)
    return Dataset(
        name="synthetic",
        user_ids=np.arange(config.num_users),
        sequences=sequences,
        items=Items(np.arange(config.num_items), titles=titles),
        best_recall=_best_recall(model, sequences),
    )


def _draw_model(config: SyntheticConfig, rng: np.random.Generator) -> tuple[_Model, list[str | None]]:
    items, count = config.num_items, config.num_clusters
    clusters = rng.permutation(items) % count
    popularity = np.zeros(items)
    titles: list[str | None] = [None] * items
    for cluster in range(count):
        members = rng.permutation(np.flatnonzero(clusters == cluster))
        weights = (1.0 + np.arange(len(members))) ** -ITEM_SKEW
        popularity[members] = weights / weights.sum()
        for place, item in enumerate(rng.permutation(members)):
            titles[item] = _title(cluster, place)

    cluster_popularity = (1.0 + rng.permutation(count)) ** -CLUSTER_SKEW
    cluster_popularity /= cluster_popularity.sum()
    transitions = np.zeros((count, count))
    for cluster in range(count):
        # Popular clusters are popular successors too; a cluster never follows itself by design.
        weights = np.where(np.arange(count) == cluster, 0.0, cluster_popularity)
        successors = rng.choice(
            count, size=min(len(SUCCESSOR_SHARES), count - 1), replace=False, p=weights / weights.sum()
        )
        transitions[cluster, successors] = SUCCESSOR_SHARES[: len(successors)]
    transitions /= transitions.sum(axis=1, keepdims=True)
    # A companion is drawn from the likely clusters, but evenly over their items: popularity does not give it away.
    next_clusters = _draw_rows(transitions[clusters], rng)
    companions = np.array([rng.choice(np.flatnonzero(clusters == cluster)) for cluster in next_clusters])
    return _Model(clusters, cluster_popularity, popularity, transitions, companions), titles


def _draw_sequences(model: _Model, users: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [users, length], column by column: where the next item comes from, then its cluster, then the item."""
    items = np.zeros((users, length), dtype=np.int64)
    items[:, 0] = _draw_items(
        model, rng.choice(len(model.cluster_popularity), size=users, p=model.cluster_popularity), rng
    )
    for step in range(1, length):
        last, before = items[:, step - 1], items[:, max(step - 2, 0)]
        source = rng.random(users)
        cause = np.where(source < COMPANION_SHARE + LAST_SHARE, last, before)
        followers = _draw_items(model, _draw_rows(model.transitions[model.clusters[cause]], rng), rng)
        items[:, step] = np.where(source < COMPANION_SHARE, model.companions[last], followers)
    return items


def _draw_items(model: _Model, clusters: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One item of each given cluster by popularity inside it."""
    order = np.argsort(model.clusters, kind="stable")
    # Cluster c owns the stretch (c, c + 1] of the running sum, because popularity sums to 1 inside each cluster.
    running = np.cumsum(model.popularity[order])
    places = np.searchsorted(running, clusters + rng.random(len(clusters)))
    sizes = np.bincount(model.clusters)
    ends = np.cumsum(sizes)
    return order[
        np.clip(places, (ends - sizes)[clusters], ends[clusters] - 1)
    ]  # the clip undoes rounding at the borders


def _draw_rows(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One column index of each row of [N, C], by its probabilities."""
    running = np.cumsum(probabilities, axis=1)
    draws = rng.random(len(probabilities)) * running[:, -1]
    return (running <= draws[:, None]).sum(axis=1)


def _best_recall(model: _Model, sequences: Ragged, chunk: int = 1024) -> dict[int, float]:
    before, last = sequences.at(-3), sequences.at(-2)
    most = min(max(KS), len(model.clusters))
    totals = np.zeros(most)
    for start in range(0, len(sequences), chunk):  # in chunks: [users, items] can be large
        probabilities = model.next_item(before[start : start + chunk], last[start : start + chunk])
        top = -np.partition(-probabilities, most - 1, axis=1)[:, :most]
        totals += np.cumsum(-np.sort(-top, axis=1), axis=1).sum(axis=0)
    return {k: float(totals[min(k, most) - 1] / len(sequences)) for k in KS}


def _title(cluster: int, place: int) -> str:
    """Words that name the cluster and tell its items apart: copper kettle, copper kettle no 2, copper kettle mark 2."""
    noun = _NOUNS[cluster % len(_NOUNS)]
    mark = "" if cluster < len(_NOUNS) else f" mark {cluster // len(_NOUNS) + 1}"
    number = "" if place < len(_ADJECTIVES) else f" no {place // len(_ADJECTIVES) + 1}"
    return f"{_ADJECTIVES[place % len(_ADJECTIVES)]} {noun}{mark}{number}"
