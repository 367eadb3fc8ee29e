"""Times beside the sequences: read, memory-mapped, and refused where they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tawin.data.columns import DataError
from tawin.data.dataset import Dataset, Items, load_dataset, save_dataset
from tawin.data.ragged import Ragged


def write_folder(folder: Path, lengths: list[int], times: list[list[int]] | None) -> Path:
    """Users of so many items of a catalogue of three, in small row groups."""
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {
        "user_id": list(range(len(lengths))),
        "item_ids": pa.array([[place % 3 for place in range(length)] for length in lengths], pa.list_(pa.int64())),
    }
    if times is not None:
        columns["times"] = pa.array(times, pa.list_(pa.int64()))
    pq.write_table(pa.table(columns), folder / "interactions.parquet", row_group_size=3)
    pq.write_table(pa.table({"item_id": [0, 1, 2]}), folder / "items.parquet")
    return folder


def listed(times: Ragged | None) -> list[list[int]]:
    assert times is not None
    return [each.tolist() for each in times]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    users=st.lists(st.lists(st.integers(-(2**40), 2**60), max_size=6).map(sorted), max_size=12),
    batch_users=st.integers(1, 5),
)
def test_mapped_times_are_those_that_are_loaded_into_memory_whatever_the_batches(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, users: list[list[int]], batch_users: int
) -> None:
    users = [*users, [5, 5, 6]]
    folder = write_folder(tmp_path_factory.mktemp("data"), [len(times) for times in users], users)
    monkeypatch.setattr("tawin.data.interactions.BATCH_USERS", batch_users)
    monkeypatch.setattr("tawin.data.times.BATCH_USERS", batch_users)
    expected = [times for times in users if len(times) >= 3]
    loaded = load_dataset(folder, with_times=True)
    mapped = load_dataset(folder, memory_map=folder / "mapped", with_times=True)
    assert listed(loaded.times) == listed(mapped.times) == expected
    assert [len(items) for items in mapped.sequences] == [len(times) for times in expected]


def test_times_are_read_where_they_are_asked_for_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", [3], [[3, 2, 1]])  # which would be refused
    assert load_dataset(folder).times is None
    assert load_dataset(folder, memory_map=tmp_path / "mapped").times is None
    assert len(list((tmp_path / "mapped").iterdir())) == 4


def test_mapped_times_are_made_once_beside_the_sequences_and_cannot_be_written_to(tmp_path: Path) -> None:
    folder, mapped = write_folder(tmp_path / "data", [3], [[1, 2, 3]]), tmp_path / "mapped"
    load_dataset(folder, memory_map=mapped)
    before = {path.name: path.stat().st_ino for path in mapped.iterdir()}
    times = load_dataset(folder, memory_map=mapped, with_times=True).times
    assert times is not None and isinstance(times.values.base, np.memmap) and not times.values.flags.writeable
    after = {path.name: path.stat().st_ino for path in mapped.iterdir()}
    assert before.items() < after.items() and len(after) == 5
    load_dataset(folder, memory_map=mapped, with_times=True)
    assert {path.name: path.stat().st_ino for path in mapped.iterdir()} == after


@pytest.mark.parametrize("is_mapped", [False, True])
@pytest.mark.parametrize(
    ("lengths", "times", "message"),
    [
        ([3], None, r"column 'times': expected for a split by time, but the file has only user_id, item_ids"),
        ([3, 4], [[1, 2, 3], [1, 2, 3]], r"column 'times': expected as many times as items of each user"),
        ([3, 2], [[1, 2, 3], [1, 2, 3]], r"column 'times': expected as many times as items of each user"),
        ([3, 3], [[1, 2, 3], [9, 8, 7]], r"expected each user's times to rise or stay, .* but 2 are earlier"),
        ([3], [[1, None, 3]], r"column 'times': expected no nulls, got 1"),
        ([3], [None], r"column 'times': expected a list in every row, got 1 nulls"),
    ],
)
def test_times_that_do_not_fit_are_refused(
    tmp_path: Path, is_mapped: bool, lengths: list[int], times: Any, message: str
) -> None:
    folder = write_folder(tmp_path / "data", lengths, times)
    with pytest.raises(DataError, match=message):
        load_dataset(folder, memory_map=tmp_path / "mapped" if is_mapped else None, with_times=True)
    if is_mapped:
        assert not [path for path in (tmp_path / "mapped").iterdir() if "times" in path.name or "part" in path.name]


def test_a_damaged_file_of_times_is_refused_by_name(tmp_path: Path) -> None:
    folder, mapped = write_folder(tmp_path / "data", [3], [[1, 2, 3]]), tmp_path / "mapped"
    load_dataset(folder, memory_map=mapped, with_times=True)
    (path,) = mapped.glob("*.times.npy")
    for damaged in (path.read_bytes()[:-3], b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"times.npy: expected the file that load_dataset wrote"):
            load_dataset(folder, memory_map=mapped, with_times=True)
    np.save(path, np.arange(4))
    with pytest.raises(DataError, match=r"int64 \(4,\) does not go with 3 interactions"):
        load_dataset(folder, memory_map=mapped, with_times=True)


def test_times_are_saved_with_a_dataset(tmp_path: Path) -> None:
    times = Ragged.of([np.array([1, 2, 2**40]), np.array([0, 0, 0])])
    items = [np.array([0, 1, 2]), np.array([2, 2, 2])]
    save_dataset(Dataset("made", np.array([4, 5]), items, Items(np.arange(3)), times=times), tmp_path)
    assert listed(load_dataset(tmp_path, with_times=True).times) == listed(times)
