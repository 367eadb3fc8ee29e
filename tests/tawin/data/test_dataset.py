"""Data folders: what is read, what is refused, and how sequences are split and cut."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tawin.data.dataset import (
    DataError,
    Dataset,
    Examples,
    Items,
    load_dataset,
    save_dataset,
    split_leave_one_out,
    target_windows,
    training_sequences,
    training_windows,
)
from tawin.data.ragged import Ragged

REAL_DATA = Path(os.environ.get("TAWIN_DATA", Path(__file__).parents[4] / "shared" / "data"))
REAL_FOLDERS = {  # users, items, interactions, levels of semantic ids, titles
    "toys": (19_412, 11_924, 167_597, None, False),
    "yelp": (30_431, 20_033, 316_354, 4, True),
    "industrial": (3_285, 3_686, 22_743, 3, True),
    "office": (3_231, 3_459, 22_447, 3, True),
}

INTERACTIONS: dict[str, Any] = {"user_id": [7, 3, 9], "item_ids": [[50, -4, 50, 20], [20, 50], [20, 50, -4]]}
ITEMS: dict[str, Any] = {"item_id": [50, 20, -4], "title": ["a", "b", None], "semantic_id": [[0, 1], [0, 1], [2, 0]]}


def write_folder(folder: Path, interactions: dict[str, Any] | None = None, items: dict[str, Any] | None = None) -> Path:
    """A data folder of three users and three items, with the given columns in place of the usual ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in (
        ("interactions.parquet", {**INTERACTIONS, **(interactions or {})}),
        ("items.parquet", {**ITEMS, **(items or {})}),
    ):
        pq.write_table(pa.table({key: value for key, value in columns.items() if value is not ...}), folder / name)
    return folder


def dataset_of(*sequences: list[int]) -> Dataset:
    num_items = 1 + max(item for sequence in sequences for item in sequence)
    return Dataset(
        name="made",
        user_ids=100 + np.arange(len(sequences)),
        sequences=[np.array(sequence, dtype=np.int64) for sequence in sequences],
        items=Items(np.arange(num_items)),
    )


def test_items_are_addressed_by_their_row_whatever_their_ids(tmp_path: Path) -> None:
    dataset = load_dataset(write_folder(tmp_path / "shop"))
    assert dataset.name == "shop"
    assert dataset.items.item_ids.tolist() == [50, 20, -4]
    assert dataset.user_ids.tolist() == [7, 9]
    assert [sequence.tolist() for sequence in dataset.sequences] == [[0, 2, 0, 1], [1, 0, 2]]
    assert all(sequence.dtype == np.int32 for sequence in dataset.sequences)
    assert dataset.items.semantic_ids == [(0, 1), (0, 1), (2, 0)]
    assert dataset.items.titles == ["a", "b", None]


def test_users_with_fewer_than_three_items_are_left_out_and_counted(tmp_path: Path) -> None:
    dataset = load_dataset(write_folder(tmp_path))
    assert dataset.users_left_out == 1
    assert 3 not in dataset.user_ids


@pytest.mark.parametrize("column", ["title", "semantic_id"])
@pytest.mark.parametrize(
    "values", [..., [None] * 3, pa.nulls(3, pa.list_(pa.int32()))], ids=["absent", "null", "typed"]
)
def test_an_optional_column_may_be_absent_or_all_null(tmp_path: Path, column: str, values: Any) -> None:
    items = load_dataset(write_folder(tmp_path, items={column: values})).items
    assert (items.titles if column == "title" else items.semantic_ids) is None


def test_other_arrow_types_of_the_same_meaning_are_read(tmp_path: Path) -> None:
    write_folder(
        tmp_path,
        interactions={
            "user_id": pa.array([7, 3, 9], pa.uint8()),
            "item_ids": pa.array(INTERACTIONS["item_ids"], pa.large_list(pa.int64())),
        },
        items={
            "title": pa.array(["a", "b", None]).dictionary_encode(),
            "semantic_id": pa.array(ITEMS["semantic_id"], pa.list_(pa.int16(), 2)),
        },
    )
    dataset = load_dataset(tmp_path)
    assert [sequence.tolist() for sequence in dataset.sequences] == [[0, 2, 0, 1], [1, 0, 2]]
    assert dataset.items.titles == ["a", "b", None]
    assert dataset.items.semantic_ids == [(0, 1), (0, 1), (2, 0)]


def test_a_file_of_several_row_groups_is_read_whole(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for name in ("interactions.parquet", "items.parquet"):
        pq.write_table(pq.read_table(tmp_path / name), tmp_path / name, row_group_size=1)
    assert [sequence.tolist() for sequence in load_dataset(tmp_path).sequences] == [[0, 2, 0, 1], [1, 0, 2]]


@pytest.mark.parametrize(
    ("interactions", "items", "message"),
    [
        ({"item_ids": [[], [], []]}, {}, r"interactions.parquet: column 'item_ids': expected interactions, got none"),
        ({"user_id": [], "item_ids": []}, {}, r"expected interactions, got none \(0 users\)"),
        ({"item_ids": [[20], [50, 20], []]}, {}, r"at least 3 items .* each of the 3 users has fewer"),
        ({"item_ids": [[50, 1, 2], [1, 3], [20, 50, -4]]}, {}, r"3 item ids are missing there; the first: 1, 2, 3"),
        ({"item_ids": ...}, {}, r"column 'item_ids': expected, but the file has only user_id"),
        ({"user_id": ...}, {}, r"column 'user_id': expected, but the file has only item_ids"),
        ({"user_id": ["a", "b", "c"]}, {}, r"column 'user_id': expected integers, got string"),
        ({"user_id": [1.0, 2.0, 3.0]}, {}, r"column 'user_id': expected integers, got double"),
        ({"user_id": [1, None, 3]}, {}, r"column 'user_id': expected no nulls, got 1"),
        ({"user_id": [3, 5, 3]}, {}, r"column 'user_id': expected each id once, but 1 are repeated; the first: 3"),
        ({"user_id": pa.array([1, 2, 2**63], pa.uint64())}, {}, r"column 'user_id': expected 64-bit integers"),
        ({"item_ids": [50, 20, 50]}, {}, r"column 'item_ids': expected lists of integers, got int64"),
        ({"item_ids": [["a"], ["b"], ["c"]]}, {}, r"column 'item_ids': expected integers, got string"),
        ({"item_ids": [[50, 20, 50], None, [20]]}, {}, r"column 'item_ids': expected a list in every row, got 1 null"),
        ({"item_ids": [[50, None, 50], [20], [20]]}, {}, r"column 'item_ids': expected no nulls, got 1"),
        ({}, {"item_id": ...}, r"items.parquet: column 'item_id': expected, but the file has only title"),
        ({}, {"item_id": [50, 20, 50]}, r"column 'item_id': expected each id once, but 1 are repeated; the first: 50"),
        ({}, {"item_id": [50, None, -4]}, r"column 'item_id': expected no nulls"),
        ({}, {"item_id": [], "title": [], "semantic_id": []}, r"items.parquet: expected at least one item"),
        ({}, {"title": [1, 2, 3]}, r"column 'title': expected strings, got int64"),
        ({}, {"semantic_id": ["1", "2", "3"]}, r"column 'semantic_id': expected lists of integers, got string"),
        ({}, {"semantic_id": [[1, 2], [1], [2, 0]]}, r"'semantic_id': item 20: expected 2 levels.* item 50 has, got 1"),
        ({}, {"semantic_id": [[1, 2], [1, -2], [2, 0]]}, r"'semantic_id': item 20: expected codes of 0 or more, got"),
        (
            {},
            {"semantic_id": [[1, 2], [1, 2], None]},
            r"'semantic_id': item -4: expected a code at every level.* got None",
        ),
        (
            {},
            {"semantic_id": [[1, 2], [1, None], [2, 0]]},
            r"'semantic_id': item 20: expected a code at every level.* got \[1, None\]",
        ),
        ({}, {"semantic_id": [[], [], []]}, r"'semantic_id': item 50: expected at least one level"),
    ],
)
@pytest.mark.parametrize("batch_users", [1, 2**16])
def test_bad_data_is_refused_by_file_and_column(
    tmp_path: Path,
    interactions: dict[str, Any],
    items: dict[str, Any],
    message: str,
    batch_users: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tawin.data.interactions.BATCH_USERS", batch_users)
    write_folder(tmp_path, interactions, items)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path)
    mapped = tmp_path / "mapped"
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path, memory_map=mapped)
    assert not mapped.exists() or list(mapped.iterdir()) == []


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: expected a folder"):
        load_dataset(tmp_path / "nowhere")
    write_folder(tmp_path)
    (tmp_path / "items.parquet").unlink()
    with pytest.raises(DataError, match=r"items.parquet: expected a parquet file"):
        load_dataset(tmp_path)


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "interactions.parquet").write_text("user_id,item_ids\n")
    with pytest.raises(DataError, match=r"interactions.parquet: expected a parquet file, got one that cannot be read"):
        load_dataset(tmp_path)


def test_a_saved_dataset_loads_as_it_was(tmp_path: Path) -> None:
    titles: list[str | None] = ['12" pan, "non-stick"', "Crème brûlée ✓", None, "Crème brûlée ✓"]
    items = Items(np.array([2**40, 3, -1, 0]), titles=titles, semantic_ids=[(1, 2), (1, 2), (0, 0), (9, 255)])
    before = Dataset("made", np.array([5, 2**35]), [np.array([0, 1, 2]), np.array([3, 3, 3, 0])], items)
    save_dataset(before, tmp_path / "new" / "folder")
    after = load_dataset(tmp_path / "new" / "folder")
    assert after.user_ids.tolist() == [5, 2**35]
    assert [sequence.tolist() for sequence in after.sequences] == [[0, 1, 2], [3, 3, 3, 0]]
    assert after.items.item_ids.tolist() == [2**40, 3, -1, 0]
    assert after.items.titles == titles
    assert after.items.semantic_ids == items.semantic_ids


def test_saving_refuses_to_overwrite_and_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "items.parquet").write_text("mine")
    with pytest.raises(DataError, match=r"items.parquet: exists already"):
        save_dataset(dataset_of([0, 1, 2]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["items.parquet"]
    assert (tmp_path / "items.parquet").read_text() == "mine"


def test_the_last_items_of_a_user_become_test_valid_and_rl_examples() -> None:
    split = split_leave_one_out(dataset_of([0, 1, 2, 3, 4, 5]), max_history=3)
    assert [sequence.tolist() for sequence in split.sft] == [[0, 1, 2]]
    for examples, history, target in (
        (split.rl, [0, 1, 2], 3),
        (split.valid, [1, 2, 3], 4),
        (split.test, [2, 3, 4], 5),
    ):
        assert examples.user_ids.tolist() == [100]
        assert [kept.tolist() for kept in examples.histories] == [history]
        assert examples.targets.tolist() == [target]


def test_a_user_of_three_items_has_valid_and_test_examples_only() -> None:
    split = split_leave_one_out(dataset_of([0, 1, 2]))
    assert len(split.sft) == len(split.rl) == 0
    assert [history.tolist() for history in split.valid.histories] == [[0]]
    assert [history.tolist() for history in split.test.histories] == [[0, 1]]


@given(
    lengths=st.lists(st.integers(3, 9), min_size=1, max_size=12),
    rl_share=st.floats(0, 1),
    rl_targets=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
def test_sft_never_sees_an_item_that_a_later_stage_is_asked_for(
    lengths: list[int], rl_share: float, rl_targets: int, seed: int
) -> None:
    # Every interaction is an item of its own here, so that membership tells interactions apart.
    starts = np.cumsum([0, *lengths])
    dataset = dataset_of(*([*range(start, start + n)] for start, n in zip(starts, lengths, strict=False)))
    split = split_leave_one_out(dataset, rl_share=rl_share, rl_targets=rl_targets, seed=seed)
    trained = {int(item) for sequence in split.sft for item in sequence}
    for examples in (split.rl, split.valid, split.test):
        assert trained.isdisjoint(examples.all_targets().ravel().tolist())
    assert len(split.valid) == len(split.test) == len(lengths)
    assert len(split.rl) == round(rl_share * sum(length >= 4 for length in lengths))
    assert all(len(sequence) >= 2 for sequence in split.sft)
    assert all(len(history) >= 1 for history in split.rl.histories)


def test_the_users_of_rl_are_drawn_by_the_seed() -> None:
    dataset = dataset_of(*([user, user + 1, user + 2, user + 3] for user in range(40)))
    drawn = [split_leave_one_out(dataset, rl_share=0.5, seed=seed).rl.user_ids.tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 20


def split_by_lists(
    sequences: list[list[int]], max_history: int, rl_share: float, rl_targets: int, rl_seen: int, seed: int
) -> dict[str, Any]:
    """The same split in plain Python: lists of items, and (user, history, targets) of every example."""
    train = [sequence[:-2] for sequence in sequences]
    eligible = [user for user, sequence in enumerate(train) if len(sequence) >= 2]
    drawn = np.random.default_rng(seed).permutation(eligible)[: round(rl_share * len(eligible))]
    asked = {int(user) for user in drawn}
    sft, rl = [], []
    for user, sequence in enumerate(train):
        targets = sequence[1:][-rl_targets:] if user in asked else []
        before = sequence[: len(sequence) - len(targets)]
        unseen = min(len(targets), rl_targets - rl_seen)
        sft.append(sequence[: len(sequence) - unseen])
        if targets:
            rl.append((100 + user, before[-max_history:], targets))

    def examples(users: Any, target: int) -> list[tuple[int, list[int], list[int]]]:
        return [(100 + user, sequences[user][:target][-max_history:], [sequences[user][target]]) for user in users]

    return {
        "sft": [sequence for sequence in sft if len(sequence) >= 2],
        "rl": rl,
        "valid": examples(range(len(sequences)), -2),
        "test": examples(range(len(sequences)), -1),
    }


@given(
    sequences=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=14), min_size=1, max_size=10),
    max_history=st.integers(1, 12),
    rl_share=st.floats(0, 1),
    rl_targets_and_seen=st.integers(1, 5).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))),
    seed=st.integers(0, 2**31),
)
def test_a_split_is_that_of_a_loop_over_users(
    sequences: list[list[int]], max_history: int, rl_share: float, rl_targets_and_seen: tuple[int, int], seed: int
) -> None:
    rl_targets, rl_seen = rl_targets_and_seen
    split = split_leave_one_out(
        dataset_of(*sequences),
        max_history=max_history,
        rl_share=rl_share,
        rl_targets=rl_targets,
        rl_seen=rl_seen,
        seed=seed,
    )
    expected = split_by_lists(sequences, max_history, rl_share, rl_targets, rl_seen, seed)
    assert [sequence.tolist() for sequence in split.sft] == expected["sft"]
    for part in ("rl", "valid", "test"):
        examples = getattr(split, part)
        histories = [history.tolist() for history in examples.histories]
        further = [[]] * len(examples) if examples.also is None else [items.tolist() for items in examples.also]
        targets = [[target, *also] for target, also in zip(examples.targets.tolist(), further, strict=True)]
        assert list(zip(examples.user_ids.tolist(), histories, targets, strict=True)) == expected[part]
        assert examples.targets.dtype == examples.all_targets().dtype == np.int64
        assert (examples.also is None) == (part != "rl" or rl_targets == 1)


def test_the_last_training_items_are_the_targets_of_rl_as_far_as_one_is_left_for_the_history() -> None:
    split = split_leave_one_out(dataset_of([0, 1, 2, 3, 4, 5, 6], [7, 8, 9, 10], [11, 12, 13]), rl_targets=3)
    assert [sequence.tolist() for sequence in split.sft] == [[0, 1]]
    assert [history.tolist() for history in split.rl.histories] == [[0, 1], [7]]
    assert split.rl.targets.tolist() == [2, 8]
    assert split.rl.all_targets().tolist() == [[2, 3, 4], [8, 8, 8]]


def test_prompts_at_every_position_ask_for_each_training_item_but_the_first() -> None:
    sequences = [list(range(7)), [9, 8, 7], [4, 5, 6, 4]]  # two items of each are kept back
    dataset = dataset_of(*sequences)
    split = split_leave_one_out(dataset, max_history=2, rl_prompts="all", rl_seen=1)
    found = sorted(
        (int(user), seen.tolist(), history.tolist(), int(target))
        for user, seen, history, target in zip(
            split.rl.user_ids, split.rl.seen, split.rl.histories, split.rl.targets, strict=True
        )
    )
    users = dataset.user_ids.tolist()
    expected = [
        (users[row], sequence[:place], sequence[:place][-2:], sequence[place])
        for row, sequence in enumerate(sequences)
        for place in range(1, len(sequence) - 2)
    ]
    assert found == sorted(expected)
    assert [sequence.tolist() for sequence in split.sft] == [list(range(5)), [4, 5]]  # as with the last ones alone


def test_sft_is_trained_on_the_first_targets_of_rl_as_far_as_it_may_see_them() -> None:
    dataset = dataset_of([0, 1, 2, 3, 4, 5, 6], [7, 8, 9, 10])
    splits = [split_leave_one_out(dataset, rl_targets=3, rl_seen=seen) for seen in range(4)]
    trained = [[sequence.tolist() for sequence in split.sft] for split in splits]
    assert trained == [[[0, 1]], [[0, 1, 2]], [[0, 1, 2, 3]], [[0, 1, 2, 3, 4], [7, 8]]]
    assert all(split.rl.all_targets().tolist() == [[2, 3, 4], [8, 8, 8]] for split in splits)
    assert all([history.tolist() for history in split.rl.histories] == [[0, 1], [7]] for split in splits)


def test_a_sequence_without_the_items_of_a_split_is_refused() -> None:
    with pytest.raises(IndexError, match=r"place -2: expected it in every sequence, but 1 has 1 values"):
        split_leave_one_out(dataset_of([0, 1, 2], [3]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_history": 0}, r"max_history: expected at least 1, got 0"),
        ({"rl_share": 1.5}, r"rl_share: expected a share in \[0, 1\], got 1.5"),
        ({"rl_share": float("nan")}, r"rl_share"),
        ({"rl_targets": 0}, r"rl_targets: expected at least 1, got 0"),
        ({"rl_seen": 2}, r"rl_seen: expected 0..1, the targets of RL that SFT may see, got 2"),
        ({"rl_seen": -1}, r"rl_seen: expected 0..1"),
    ],
)
def test_a_split_refuses_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_leave_one_out(dataset_of([0, 1, 2]), **arguments)


def test_training_sequences_end_before_the_valid_item() -> None:
    sequences = training_sequences(dataset_of([0, 1, 2], [3, 4, 5, 6]))
    assert [sequence.tolist() for sequence in sequences] == [[0], [3, 4]]


@settings(max_examples=200)
@given(lengths=st.lists(st.integers(0, 60), max_size=5), max_history=st.integers(1, 12))
def test_every_item_but_the_first_is_a_target_once_with_enough_history(lengths: list[int], max_history: int) -> None:
    starts = np.cumsum([0, *lengths])
    sequences = [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=False)]
    windows, first_targets = training_windows(sequences, max_history)
    targets = []
    for window, first in zip(windows, first_targets, strict=True):
        assert 2 <= len(window) <= max_history + 1
        start = starts[np.searchsorted(starts, window[0], side="right") - 1]
        for place in range(first, len(window)):
            available = window[place] - start
            assert min(available, max(1, max_history // 2)) <= place <= max_history
            targets.append(int(window[place]))
        assert (np.diff(window) == 1).all()
    assert sorted(targets) == [int(item) for sequence in sequences for item in sequence[1:]]


def windows_by_loop(sequences: list[np.ndarray], max_history: int) -> list[tuple[list[int], int]]:
    """Each window and its first target, cut one after another."""
    size, context = max_history + 1, max(1, max_history // 2)
    windows = []
    for sequence in sequences:
        target = 1
        while target < len(sequence):
            start = max(0, min(target - context, len(sequence) - size))
            windows.append((sequence[start : start + size].tolist(), target - start))
            target = start + size
    return windows


@settings(max_examples=200)
@given(
    lengths=st.lists(st.integers(0, 60), max_size=8),
    max_history=st.integers(1, 12),
    from_ragged=st.booleans(),
    chunk=st.integers(1, 9),
)
def test_windows_are_those_of_a_loop_over_sequences(
    lengths: list[int], max_history: int, from_ragged: bool, chunk: int
) -> None:
    sequences = [np.arange(100 * place, 100 * place + length) for place, length in enumerate(lengths)]
    ragged = Ragged.of(sequences)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tawin.data.dataset.CHUNK", chunk)
        windows, first_targets = training_windows(ragged if from_ragged else sequences, max_history)
    found = zip([window.tolist() for window in windows], first_targets.tolist(), strict=True)
    assert list(found) == windows_by_loop(sequences, max_history)
    assert windows.values is ragged.values or not from_ragged


def test_the_last_window_moves_back_until_it_is_full() -> None:
    windows, first_targets = training_windows([np.arange(7)], max_history=4)
    assert [window.tolist() for window in windows] == [[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]]
    assert first_targets.tolist() == [1, 3]


@pytest.mark.parametrize("max_history", [1, 3, 9])
def test_a_window_a_target_has_the_items_before_it(max_history: int) -> None:
    sequences = [np.array([5, 6, 7, 8, 9]), np.array([4]), np.zeros(0, dtype=np.int64), np.array([1, 1])]
    windows, first_targets = target_windows(sequences, max_history)
    expected = [
        sequence[max(0, target - max_history) : target + 1].tolist()
        for sequence in sequences
        for target in range(1, len(sequence))
    ]
    assert [window.tolist() for window in windows] == expected
    assert first_targets.tolist() == [len(window) - 1 for window in expected]
    assert first_targets.dtype == np.int32


def test_windows_need_room_for_one_item_of_history() -> None:
    with pytest.raises(ValueError, match=r"max_history: expected at least 1, got 0"):
        training_windows([np.arange(3)], 0)
    with pytest.raises(ValueError, match="max_history: expected at least 1, got 0"):
        target_windows([np.arange(3)], 0)


def test_a_sample_keeps_the_order_and_is_drawn_by_the_seed() -> None:
    examples = Examples(np.arange(50), [np.array([row]) for row in range(50)], np.arange(50) + 1)
    sample = examples.sample(10, seed=3)
    assert len(sample) == 10
    assert (np.diff(sample.user_ids) > 0).all()
    assert [int(history[0]) for history in sample.histories] == sample.user_ids.tolist()
    assert sample.targets.tolist() == (sample.user_ids + 1).tolist()
    assert sample.user_ids.tolist() == examples.sample(10, seed=3).user_ids.tolist()
    assert sample.user_ids.tolist() != examples.sample(10, seed=4).user_ids.tolist()
    assert examples.sample(50, seed=0) is examples
    with pytest.raises(ValueError, match=r"n: expected 0 or more, got -1"):
        examples.sample(-1, seed=0)


def test_taking_examples_follows_the_given_order() -> None:
    examples = Examples(np.arange(3), [np.array([row]) for row in range(3)], np.arange(3) + 1)
    assert examples.take([1]).seen is None
    taken = examples.take([2, 0])
    assert taken.user_ids.tolist() == [2, 0]
    assert taken.targets.tolist() == [3, 1]
    assert taken.also is None and taken.all_targets().tolist() == [[3], [1]]
    assert len(examples.take([])) == 0


def test_the_further_targets_of_an_example_go_where_it_goes() -> None:
    also = Ragged.of([np.array([10, 11]), np.array([], dtype=np.int64), np.array([12])])
    examples = Examples(np.arange(3), [np.array([row]) for row in range(3)], np.arange(3) + 1, also)
    assert examples.all_targets().tolist() == [[1, 10, 11], [2, 2, 2], [3, 12, 3]]
    assert examples.take([2, 1]).all_targets().tolist() == [[3, 12], [2, 2]]
    assert examples.take([]).all_targets().shape == (0, 1)


@pytest.mark.parametrize("name", REAL_FOLDERS)
def test_real_folders_load_with_the_counts_of_their_readme(name: str) -> None:
    if not (REAL_DATA / name).is_dir():
        pytest.skip(f"no real data: {REAL_DATA / name} (set TAWIN_DATA to the folder that holds it)")
    users, items, interactions, levels, has_titles = REAL_FOLDERS[name]
    dataset = load_dataset(REAL_DATA / name)
    assert (len(dataset.sequences), len(dataset.items)) == (users, items)
    assert sum(map(len, dataset.sequences)) == interactions
    assert dataset.users_left_out == 0
    assert (dataset.items.titles is not None) == has_titles
    assert levels == (None if dataset.items.semantic_ids is None else len(dataset.items.semantic_ids[0]))


@pytest.mark.parametrize("column", [0, 1])
def test_a_flipped_bit_of_a_file_of_ours_is_found_wherever_a_columns_pages_lie(tmp_path: Path, column: int) -> None:
    ids = list(range(10, 74))
    items = Items(np.array(ids), titles=[f"item {i}" for i in ids])
    sequences = [np.arange(start, start + 5) for start in range(40)]
    save_dataset(Dataset("ours", np.arange(40), sequences, items), tmp_path)
    path = tmp_path / "interactions.parquet"
    whole = path.read_bytes()
    pages = pq.ParquetFile(path).metadata.row_group(0).column(column)
    first = pages.dictionary_page_offset or pages.data_page_offset
    for place in range(first, first + pages.total_compressed_size):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = load_dataset(tmp_path)
        except DataError:
            continue
        # A page's header has no checksum, and bytes without a meaning for us.
        assert found.user_ids.tolist() == list(range(40)), place
        assert [list(sequence) for sequence in found.sequences] == [list(sequence) for sequence in sequences], place
