"""A split at two points in time: what was before the first is for training, whatever the user.

Leave-one-out trains on what some users did after the valid and test items of others. Here nothing that training sees is
as late as the first valid target, and no valid target as late as the first test target. The price: users who did
nothing in a period, or nothing before it, are no example of it.
"""

from __future__ import annotations

import numpy as np

from ..config.data import RLPrompts
from .dataset import Dataset, Examples, Split, training_parts
from .ragged import Ragged

CHUNK = 2**22  # times that are looked at at once


def split_by_time(
    dataset: Dataset,
    *,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    max_history: int = 10,
    rl_share: float = 1.0,
    rl_targets: int = 1,
    rl_seen: int = 0,
    rl_prompts: RLPrompts = "last",
    seed: int = 0,
) -> Split:
    """Splits at the times after which a share of all interactions lies: test_share, and both shares together.

    A user's test example is the first interaction of the test period, with all before it as history; a valid example
    likewise of the valid period. Further ones of a period are in no example but the next period's history. The training
    items are parted among SFT and RL as `split_leave_one_out` does it. Interactions of one time are never split, so the
    shares are upper bounds.

    Raises:
        ValueError: a dataset without times, shares out of range, or none of training, valid and test.
    """
    if dataset.times is None:
        raise ValueError("dataset: expected one with times (load_dataset with with_times=True), got none")
    for name, share in (("valid_share", valid_share), ("test_share", test_share)):
        if not 0.0 < share < 1.0:
            raise ValueError(f"{name}: expected a share in (0, 1), got {share}")
    if valid_share + test_share >= 1.0:
        raise ValueError(
            f"valid_share, test_share: expected a sum below 1, which leaves training something, got {valid_share} and "
            f"{test_share}"
        )
    sequences = Ragged.of(dataset.sequences)
    valid_from, test_from = cut(dataset.times, valid_share + test_share), cut(dataset.times, test_share)
    in_training, before_test = (_count_before(dataset.times, time) for time in (valid_from, test_from))
    train = sequences.bounded(sequences.starts, sequences.starts + in_training)
    sft, rl = training_parts(
        dataset.user_ids,
        train,
        max_history=max_history,
        rl_share=rl_share,
        rl_targets=rl_targets,
        rl_seen=rl_seen,
        rl_prompts=rl_prompts,
        seed=seed,
    )
    split = Split(
        sft=sft,
        rl=rl,
        valid=_examples(dataset.user_ids, sequences, in_training, before_test, max_history),
        test=_examples(dataset.user_ids, sequences, before_test, sequences.lengths, max_history),
        training=train.take(train.lengths >= 1),
    )
    for name, found in (("training", split.training), ("valid", split.valid), ("test", split.test)):
        if len(found) == 0:
            raise ValueError(
                f"split.valid_share, split.test_share: expected shares that leave {name} a user, got {valid_share} and "
                f"{test_share} (valid from {valid_from}, test from {test_from})"
            )
    return split


def cut(times: Ragged, share: float) -> int:
    """The earliest time from which on there is at most this share of the interactions."""
    bounds = [(int(part.min()), int(part.max())) for part in _chunks(times)]
    low, high = min(first for first, _ in bounds), max(last for _, last in bounds) + 1
    most = share * int(times.lengths.sum())
    while low < high:  # from `high` on there are few enough, before `low` too many
        middle = (low + high) // 2
        if sum(int(np.count_nonzero(part >= middle)) for part in _chunks(times)) <= most:
            high = middle
        else:
            low = middle + 1
    return high


def _chunks(times: Ragged) -> list[np.ndarray]:
    """Views of all times; a copy only where there are gaps between the sequences."""
    is_whole = int(times.lengths.sum()) == len(times.values)
    values = times.values if is_whole else times.flat()
    return [values[first : first + CHUNK] for first in range(0, len(values), CHUNK)]


def _count_before(times: Ragged, time: int) -> np.ndarray:
    """[users]: how many of a user's times are before `time`; they rise, so that these are the first ones."""
    counts = np.zeros(len(times), dtype=times.starts.dtype)
    users = max(1, CHUNK * len(times) // max(1, len(times.values)))
    for first in range(0, len(times), users):
        some = times[first : first + users]
        before = np.concatenate([[0], np.cumsum(some.flat() < time)])
        stops = np.cumsum(some.lengths)
        counts[first : first + users] = before[stops] - before[stops - some.lengths]
    return counts


def _examples(
    user_ids: np.ndarray, sequences: Ragged, first: np.ndarray, end: np.ndarray, max_history: int
) -> Examples:
    """The interaction at place `first` of each user that has one before it and one before place `end`."""
    users = np.flatnonzero((first >= 1) & (first < end))
    places = sequences.starts[users] + first[users]
    seen = sequences.take(users)
    seen = seen.bounded(seen.starts, places)
    targets = sequences.values[places].astype(np.int64)
    return Examples(user_ids[users], seen.last(max_history), targets, seen=seen)
