"""The data folder is written whole or not at all, and never over anything."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tawin.data.columns import DataError
from tawin.data.dataset import load_dataset
from tawin.prepare import write as module
from tawin.prepare.write import Prepared, require_new, write_folder
from tawin.run.atomic import WriteError

PREPARED = Prepared(
    user_sources=["ann", "bob"],
    item_sources=["70", "5", "-1"],
    items=np.array([0, 1, 0, 2, 2], dtype=np.int32),
    offsets=np.array([0, 3, 5]),
    times=np.array([1, 2, 2, 5, 6]),
    weights=np.array([0.5, 1, 2, 3, 4], dtype=np.float32),
    titles=["Seventy", None, "Minus"],
    semantic_ids=[(1, 2), (1, 2), (0, 3)],
)


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_what_is_written_is_what_the_trainer_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(module, "BATCH_USERS", batch)
    write_folder(PREPARED, {"format": "csv"}, tmp_path / "deep" / "data")
    folder = tmp_path / "deep" / "data"
    dataset = load_dataset(folder, with_times=True)
    assert [items.tolist() for items in dataset.sequences] == [[0, 1, 0]]
    assert dataset.users_left_out == 1
    assert dataset.times is not None and [times.tolist() for times in dataset.times] == [[1, 2, 2]]
    weights = dataset.sequences.of_weights()
    assert weights is not None and [found.tolist() for found in weights] == [[0.5, 1, 2]]
    assert dataset.items.item_ids.tolist() == [70, 5, -1]
    assert dataset.items.titles == PREPARED.titles
    assert dataset.items.semantic_ids == PREPARED.semantic_ids
    assert pq.read_table(folder / "interactions.parquet").to_pydict() == {
        "user_id": [0, 1],
        "item_ids": [[70, 5, 70], [-1, -1]],
        "times": [[1, 2, 2], [5, 6]],
        "weights": [[0.5, 1, 2], [3, 4]],
    }
    assert pq.read_table(folder / "users.parquet").to_pydict() == {"user_id": [0, 1], "source_id": ["ann", "bob"]}
    assert sorted(path.name for path in folder.iterdir()) == [
        *("interactions.parquet", "items.parquet", "prepare.json", "users.parquet")
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["data"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~mask  # that of any new folder, not mkdtemp's


def test_an_empty_folder_is_filled_and_one_with_files_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_folder(PREPARED, {}, tmp_path / "empty")
    assert (tmp_path / "empty" / "items.parquet").is_file()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("full", "file", "dangling"):
        with pytest.raises(DataError, match=f"{name}: expected a new or an empty folder"):
            require_new(tmp_path / name)
        with pytest.raises(DataError, match=f"{name}: expected a new or an empty folder"):
            write_folder(PREPARED, {}, tmp_path / name)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    assert (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_what_fails_on_the_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(module, "sync_folder", fail)
    with pytest.raises(type(error)):
        write_folder(PREPARED, {}, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named_and_nothing_of_it_is_left(
    tmp_path: Path, limit_files: Callable[[int], AbstractContextManager[None]]
) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "data", Path("/proc/data")):
        with pytest.raises(WriteError, match=rf"^{folder}: could not be written: "):
            write_folder(PREPARED, {}, folder)
    with (
        limit_files(100),
        pytest.raises(WriteError, match=rf"^{tmp_path}/data: could not be written: .*File too large"),
    ):
        write_folder(PREPARED, {}, tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
