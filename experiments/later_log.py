"""Two logs of one catalogue, a month apart: what `tawin extend` is measured on, as the released data has no times.

    python -m experiments.later_log SOURCE FOLDER

makes FOLDER/OLD and FOLDER/NEW, data folders, and where SOURCE has titles FOLDER/OLD.npy and NEW.npy, vectors of them
(TF-IDF of words, SVD to 64 dimensions, fitted on OLD's titles alone).

A user's first three fifths of the interactions are the old period, the rest is the new one. A tenth of the items are
launched between the two: what anybody took of them in the old period is dropped from both logs. A further fiftieth are
launched today: only who took one last of all keeps it, so training (leave one out) never sees them; their text is all
there is. A fiftieth of the others are gone from NEW. NEW numbers its items anew; `source_id` is what the two share.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tawin.data.dataset import Dataset, Items, load_dataset, save_dataset
from tawin.data.ragged import Ragged

OLD_SHARE, LAUNCHED, TODAY, GONE = 0.6, 0.1, 0.02, 0.02
LATER = 1_000_000  # the time at which the new period begins; an interaction's time is its place in its period


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    whole = load_dataset(options.source)
    kinds = kinds_of_items(len(whole.items))
    old, new = old_and_new(whole, kinds)
    for name, dataset in (("OLD", old), ("NEW", new)):
        save_dataset(dataset, options.folder / name)
    if whole.items.titles is not None:
        embed = fit_titles(old.items.titles)
        for name, dataset in (("OLD", old), ("NEW", new)):
            np.save(options.folder / f"{name}.npy", embed(dataset.items.titles))
    counts = {kind: int((kinds == kind).sum()) for kind in np.unique(kinds)}
    print(f"items: {counts}; users: OLD {len(old.sequences):,}, NEW {len(new.sequences):,}")


def kinds_of_items(items: int) -> np.ndarray:
    """str [items]: old, launched, today or gone."""
    kinds = np.full(items, "old", dtype="<U8")
    order = np.random.default_rng(0).permutation(items)
    bounds = np.cumsum([round(share * items) for share in (LAUNCHED, TODAY, GONE)])
    for kind, places in zip(("launched", "today", "gone"), np.split(order, bounds), strict=False):
        kinds[places] = kind
    return kinds


def old_and_new(whole: Dataset, kinds: np.ndarray) -> tuple[Dataset, Dataset]:
    """The log of the old period, and the log of both."""
    sequences = Ragged.of(whole.sequences)
    old_rows, new_rows = [], []
    for items in sequences:
        end = int(OLD_SHARE * len(items))
        place = np.arange(len(items))
        is_old = place < end
        times = np.where(is_old, place, LATER + place)
        known = np.isin(kinds[items], ("old", "gone"))
        old_rows.append((items[is_old & known], times[is_old & known]))
        kept = (kinds[items] == "old") | ((kinds[items] == "launched") & ~is_old)
        kept[-1] |= kinds[items[-1]] == "today"
        new_rows.append((items[kept], times[kept]))
    order = np.random.default_rng(1).permutation(np.flatnonzero(kinds != "gone"))
    return (
        _dataset("OLD", whole, np.flatnonzero(np.isin(kinds, ("old", "gone"))), old_rows),
        _dataset("NEW", whole, order, new_rows),
    )


def _dataset(name: str, whole: Dataset, rows: np.ndarray, taken: list[tuple[np.ndarray, np.ndarray]]) -> Dataset:
    place = np.full(len(whole.items), -1)
    place[rows] = np.arange(len(rows))
    users = [user for user, (items, _) in enumerate(taken) if len(items) >= 3]
    items = whole.items.take(rows)
    titles = items.titles
    named = Items(np.arange(len(rows)), titles, None, items.names)
    return Dataset(
        name,
        whole.user_ids[users],
        Ragged.of([place[taken[user][0]] for user in users]),
        named,
        times=Ragged.of([taken[user][1] for user in users]),
    )


def fit_titles(titles: list[str | None] | None) -> Callable[[list[str | None] | None], np.ndarray]:
    """What makes vectors of titles, float32 [titles, 64]: fitted on these."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer()
    svd = TruncatedSVD(64, random_state=0).fit(words.fit_transform(title or "" for title in titles or []))
    return lambda more: svd.transform(words.transform(title or "" for title in more or [])).astype(np.float32)


if __name__ == "__main__":
    main()
