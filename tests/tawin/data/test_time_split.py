"""A split at two points in time: against a loop over users, and that nothing of the future is trained on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tawin.config import Config, SplitConfig
from tawin.data import time_split as module
from tawin.data.dataset import Dataset, Examples, Items, load_dataset, save_dataset, split_leave_one_out
from tawin.data.ragged import Ragged
from tawin.data.time_split import cut, split_by_time
from tawin.serve.load import load_data

TIMES = st.lists(st.lists(st.integers(0, 12), min_size=3, max_size=9).map(sorted), min_size=1, max_size=12)


def dataset_of(times: list[list[int]]) -> Dataset:
    """Every interaction is an item of its own, so that membership tells interactions apart."""
    bounds = np.cumsum([0, *map(len, times)])
    items = [np.arange(start, stop) for start, stop in itertools.pairwise(bounds)]
    ragged = Ragged.of([np.array(each, dtype=np.int64) for each in times])
    return Dataset("made", 100 + np.arange(len(times)), items, Items(np.arange(bounds[-1])), times=ragged)


def cut_by_loop(times: list[list[int]], share: float) -> int:
    flat = [time for each in times for time in each]
    return next(time for time in range(14) if sum(each >= time for each in flat) <= share * len(flat))


def listed(examples: Examples) -> list[tuple[int, list[int], int]]:
    histories = [history.tolist() for history in examples.histories]
    return list(zip(examples.user_ids.tolist(), histories, examples.targets.tolist(), strict=True))


@settings(max_examples=200)
@given(
    times=TIMES,
    valid_share=st.floats(0.01, 0.5),
    test_share=st.floats(0.01, 0.49),
    max_history=st.integers(1, 5),
    rl_targets=st.integers(1, 3),
    chunk=st.integers(1, 40),
)
def test_a_split_is_that_of_a_loop_over_users(
    times: list[list[int]], valid_share: float, test_share: float, max_history: int, rl_targets: int, chunk: int
) -> None:
    dataset = dataset_of(times)
    valid_from, test_from = cut_by_loop(times, valid_share + test_share), cut_by_loop(times, test_share)
    train, valid, test = [], [], []
    for user, (items, when) in enumerate(zip(dataset.sequences, times, strict=True)):
        first = [sum(time < start for time in when) for start in (valid_from, test_from)]
        train.append(items[: first[0]].tolist())
        for found, place, end in ((valid, first[0], test_from), (test, first[1], 99)):
            if 0 < place < len(items) and when[place] < end:
                found.append((100 + user, items[:place].tolist()[-max_history:], int(items[place])))
    options: dict[str, Any] = {"max_history": max_history, "rl_targets": rl_targets}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        if not (any(train) and valid and test):
            with pytest.raises(ValueError, match=r"expected shares that leave (training|valid|test) a user"):
                split_by_time(dataset, valid_share=valid_share, test_share=test_share, **options)
            return
        split = split_by_time(dataset, valid_share=valid_share, test_share=test_share, **options)
    assert (listed(split.valid), listed(split.test)) == (valid, test)
    assert [items.tolist() for items in split.training] == [items for items in train if items]
    # SFT and RL part the training items as they do those of leave-one-out, which ends two items later.
    longer = [np.array([*items, 0, 0]) for items in train]
    other = split_leave_one_out(Dataset("made", dataset.user_ids, longer, dataset.items), **options)
    assert [items.tolist() for items in split.sft] == [items.tolist() for items in other.sft]
    assert listed(split.rl) == listed(other.rl)
    assert split.rl.all_targets().tolist() == other.rl.all_targets().tolist()


@given(times=TIMES, valid_share=st.floats(0.1, 0.5), test_share=st.floats(0.1, 0.4))
def test_nothing_that_is_trained_on_is_as_late_as_a_target(
    times: list[list[int]], valid_share: float, test_share: float
) -> None:
    when = np.concatenate([np.array(each) for each in times])  # by item
    try:
        split = split_by_time(dataset_of(times), valid_share=valid_share, test_share=test_share)
    except ValueError:
        return
    trained = np.concatenate([*split.training, *split.sft, split.rl.targets])
    assert when[trained].max() < when[split.valid.targets].min()
    assert when[split.valid.targets].max() < when[split.test.targets].min()
    assert np.mean(when >= when[split.test.targets].min()) <= test_share + 1e-9
    assert all(len(history) >= 1 for part in (split.valid, split.test) for history in part.histories)


@given(times=TIMES, share=st.floats(0, 1))
def test_a_cut_is_the_earliest_time_that_leaves_no_more_than_the_share(times: list[list[int]], share: float) -> None:
    ragged = Ragged.of([np.array(each, dtype=np.int64) for each in times])
    found, flat = cut(ragged, share), ragged.flat()
    assert np.count_nonzero(flat >= found) <= share * len(flat)
    assert found == flat.min() or np.count_nonzero(flat >= found - 1) > share * len(flat)
    assert cut(ragged.take(np.repeat(np.arange(len(ragged)), 2)), share) == found  # sequences need not lie in a row


EVEN = [[day, day + 10, day + 20, day + 30, day + 40] for day in range(10)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"valid_share": 0.0}, r"valid_share: expected a share in \(0, 1\), got 0.0"),
        ({"test_share": 1.0}, r"test_share: expected a share in \(0, 1\), got 1.0"),
        ({"valid_share": 0.5, "test_share": 0.5}, r"expected a sum below 1, .* got 0.5 and 0.5"),
        ({"test_share": 0.001}, r"expected shares that leave test a user"),
        ({"max_history": 0}, r"max_history: expected at least 1, got 0"),
        ({"rl_share": 2.0}, r"rl_share: expected a share in \[0, 1\], got 2.0"),
    ],
)
def test_a_split_refuses_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_by_time(dataset_of(EVEN), **arguments)


def test_sft_may_be_trained_on_what_rl_asks_for() -> None:
    splits = [split_by_time(dataset_of(EVEN), rl_seen=seen) for seen in (0, 1)]
    assert [sequence[:-1].tolist() for sequence in splits[1].sft] == [sequence.tolist() for sequence in splits[0].sft]
    assert [int(sequence[-1]) for sequence in splits[1].sft] == splits[1].rl.targets.tolist()
    assert splits[0].rl.targets.tolist() == splits[1].rl.targets.tolist()


def test_a_dataset_without_times_is_refused() -> None:
    dataset = Dataset("made", np.array([1]), [np.array([0, 1, 2])], Items(np.arange(3)))
    with pytest.raises(ValueError, match=r"dataset: expected one with times .*with_times=True"):
        split_by_time(dataset)


@pytest.mark.parametrize("is_mapped", [False, True])
def test_a_config_asks_for_a_split_by_time(tmp_path: Path, is_mapped: bool) -> None:
    save_dataset(dataset_of(EVEN), tmp_path / "data")
    options = SplitConfig(method="time", valid_share=0.2, test_share=0.2, max_history=3)
    cache = str(tmp_path / "cache") if is_mapped else None
    _, split = load_data(Config(data=str(tmp_path / "data"), data_cache=cache, split=options))
    expected = split_by_time(
        load_dataset(tmp_path / "data", with_times=True), valid_share=0.2, test_share=0.2, max_history=3
    )
    assert listed(split.valid) == listed(expected.valid) and listed(split.test) == listed(expected.test)
    assert len(split.test) == 10 and len(split.valid) == 10
    assert listed(split.test)[0] == (100, [1, 2, 3], 4)


def test_made_up_data_cannot_be_split_by_time() -> None:
    with pytest.raises(ValueError, match=r"split.method: expected leave_one_out without --data"):
        load_data(Config(split=SplitConfig(method="time")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "random"}, r"split.method: expected one of \('leave_one_out', 'time', 'none'\), got 'random'"),
        ({"valid_share": 0.0}, r"split.valid_share: expected a share in \(0, 1\), got 0.0"),
        ({"valid_share": 0.6, "test_share": 0.4}, r"split.valid_share: expected a sum with split.test_share below 1"),
    ],
)
def test_a_config_refuses_what_is_no_split(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitConfig(**options)
