"""Records survive the way to parquet and back, and what is no record is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.store import Record, read_records, write_records


def record(row: str = "TAWin", seed: int = 0) -> Record:
    return Record(
        table="main",
        data="office",
        row=row,
        seed=seed,
        settings={"grpo": {"tawin": {"anchor": 2.0}}, "model": None},
        values={"test recall@3": 0.0712, "valid recall@3": 0.09},
        ranks={"test": np.array([0, -1, 7], dtype=np.int32)},
        series={"valid step": [0.0, 20.0]},
        seconds=1.5,
        machine="a machine",
        version="abc1234",
        finished_at="2026-11-24T20:00:00+00:00",
    )


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    write_records([record()], tmp_path / "some" / "main.parquet")
    (found,) = read_records(tmp_path / "some" / "main.parquet")
    expected = record()
    for name in ("key", "settings", "values", "series", "seconds", "machine", "version", "finished_at"):
        assert getattr(found, name) == getattr(expected, name)
    assert found.ranks.keys() == {"test"}
    assert found.ranks["test"].dtype == np.int32
    assert np.array_equal(found.ranks["test"], expected.ranks["test"])


def test_a_folder_gives_the_records_of_its_files_in_order(tmp_path: Path) -> None:
    write_records([record("b"), record("a", 1)], tmp_path / "z.parquet")
    write_records([record("a", 0)], tmp_path / "y.parquet")
    assert [(found.row, found.seed) for found in read_records(tmp_path)] == [("a", 0), ("a", 1), ("b", 0)]


def test_a_cell_is_written_once_and_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "main.parquet"
    write_records([record()], path)
    with pytest.raises(
        ValueError, match=r"records: expected each cell once, got several of \('main', 'office', 'TAWin', 0\)"
    ):
        write_records([record(), record()], path)
    with pytest.raises(TypeError):
        write_records([record("new"), Record("main", "office", "bad", 0, {"not": object()}, {})], path)
    assert [found.row for found in read_records(path)] == ["TAWin"]
    assert [file.name for file in tmp_path.iterdir()] == ["main.parquet"]


def test_a_file_without_records_is_refused(tmp_path: Path) -> None:
    (tmp_path / "main.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match=r"main.parquet: expected records of experiments"):
        read_records(tmp_path / "main.parquet")
