"""Which data a run was trained on: its folder and a digest of what is in it, kept beside the run's catalogue.

Two folders are the same data if they have the same items, by the log's own ids, and the same histories, whoever the
users are: files, row groups, numbers of items and the order of users do not count. Times do where the split is by time,
weights where interactions have them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..run.atomic import write_atomically
from .columns import DataError
from .dataset import Dataset
from .ragged import Ragged, count_within

ORIGIN_FILE = "data.json"
FORMAT = 1
CHUNK = 2**22  # interactions that are looked at at a time
_STEP = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Digest:
    """Of a dataset."""

    items: str
    """Of the log's ids, in any order."""
    users: int
    interactions: int
    histories: str
    """Of the items of every user, oldest first; users in any order."""
    order: str
    """The same, users in their order, which is that of training batches."""


@dataclass(frozen=True)
class Origin:
    """What a run was trained on."""

    folder: str | None
    """Absolute; None for made-up data, and in an exported folder."""
    digest: Digest

    def save(self, folder: Path) -> None:
        values = {"format": FORMAT, "folder": self.folder, **asdict(self.digest)}
        write_atomically(folder / ORIGIN_FILE, json.dumps(values, indent=1) + "\n")


def read_origin(folder: Path) -> Origin | None:
    """What `Origin.save` wrote beside a catalogue; None where there is none, as in runs of earlier versions."""
    path = folder / ORIGIN_FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise ValueError("another format")
        return Origin(values.pop("folder"), Digest(**values))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: expected the file that training writes, cannot read it: {error}") from None


def require_same_data(dataset: Dataset, origin: Origin | None, where: str) -> bool:
    """Whether users stand in the order that they were trained in too; True where nothing is known of the data.

    Raises:
        DataError: other items or histories; `where` begins the message.
    """
    if origin is None:
        return True
    found, known = digest_of(dataset), origin.digest
    if (found.items, found.histories) != (known.items, known.histories):
        what = "items" if found.items != known.items else "histories"
        raise DataError(
            f"{where}: expected the data that the run was trained on, {known.users:,} users and "
            f"{known.interactions:,} interactions, got other {what}, {found.users:,} users and "
            f"{found.interactions:,} interactions: the data was changed; put it back, name its place with --data, or "
            "train anew"
        )
    return found.order == known.order


def digest_of(dataset: Dataset) -> Digest:
    """8 bytes an item and a few of a chunk of interactions are held; some 20 million interactions a second."""
    ids = dataset.items.names
    item_hashes = np.array([_hash(text) for text in ids], dtype=np.uint64)
    sequences = Ragged.of(dataset.sequences)
    times = None if dataset.times is None else Ragged.of(dataset.times)
    totals = np.zeros(3, dtype=np.uint64)
    ends = np.searchsorted(np.cumsum(sequences.lengths), np.arange(CHUNK, int(sequences.lengths.sum()), CHUNK))
    for users in np.split(np.arange(len(sequences)), np.unique(ends)):
        if len(users) == 0:
            continue
        part = slice(int(users[0]), int(users[-1]) + 1)
        of_times = None if times is None else times[part]
        hashes = _user_hashes(sequences[part], item_hashes, of_times, sequences[part].of_weights())
        totals += np.array([hashes.sum(), _mixed(hashes).sum(), _mixed(hashes + _mixed(users)).sum()], dtype=np.uint64)
    counts = (len(sequences), int(sequences.lengths.sum()))
    return Digest(
        items=hashlib.sha256("\n".join(sorted(ids)).encode("utf-8", "surrogatepass")).hexdigest(),
        users=counts[0],
        interactions=counts[1],
        histories=f"{totals[0]:016x}{totals[1]:016x}",
        order=f"{totals[2]:016x}",
    )


def histories_in(dataset: Dataset, other: Dataset) -> np.ndarray:
    """bool [users]: whether some user of the other dataset has the very same items, oldest first, by the log's ids."""
    hashes = []
    for each in (dataset, other):
        items = np.array([_hash(text) for text in each.items.names], dtype=np.uint64)
        hashes.append(_user_hashes(Ragged.of(each.sequences), items))
    return np.isin(hashes[0], hashes[1])


def _user_hashes(
    sequences: Ragged, item_hashes: np.ndarray, times: Ragged | None = None, weights: Ragged | None = None
) -> np.ndarray:
    """uint64 [users], of the items and their places, of the times and of the weights."""
    lengths = sequences.lengths
    places = _mixed(item_hashes[sequences.flat()] + _mixed(count_within(lengths)))
    if weights is not None:
        places = _mixed(places + _mixed(weights.flat().view(np.uint32)))
    if times is not None:
        places = _mixed(places + _mixed(times.flat()))
    starts = np.cumsum(lengths) - lengths
    return _mixed(np.add.reduceat(places, starts[lengths > 0])) if len(places) else places


def _mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64: every bit of the result depends on every bit of the value. Sums of uint64 wrap, as they should."""
    mixed = values.astype(np.uint64) + _STEP
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
