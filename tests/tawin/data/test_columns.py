"""Lists that are read in batches; what else columns are read or refused for is in test_data.py and test_catalog.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tawin.data.columns import DataError, open_parquet, read_integer_list_batches, read_integers, read_table


def write_lists(path: Path, lists: pa.Array, row_group_size: int) -> Path:
    pq.write_table(pa.table({"lists": lists, "other": pa.nulls(len(lists), pa.int32())}), path, row_group_size)
    return path


def test_a_batch_may_end_anywhere_in_a_row_group(tmp_path: Path) -> None:
    lists = [[1, 2], [], [3], [4, 5, 6], [7], [], [8]]
    path = write_lists(tmp_path / "file.parquet", pa.array(lists, pa.list_(pa.int16())), row_group_size=3)
    for rows in (1, 2, 4, 100):
        batches = list(read_integer_list_batches(path, "lists", rows))
        assert np.concatenate([values for values, _ in batches]).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
        assert np.concatenate([lengths for _, lengths in batches]).tolist() == [2, 0, 1, 3, 1, 0, 1]
        assert all(len(lengths) <= rows and len(values) == lengths.sum() for values, lengths in batches)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([[1], None, [2], None, [3], None], r"column 'lists': expected a list in every row, got 3 nulls"),
        ([[1, None], [2], [None, None], [3]], r"column 'lists': expected no nulls, got 3"),
    ],
)
def test_nulls_are_counted_over_the_whole_file(tmp_path: Path, lists: list[list[int] | None], message: str) -> None:
    path = write_lists(tmp_path / "file.parquet", pa.array(lists), row_group_size=2)
    with pytest.raises(DataError, match=message):
        list(read_integer_list_batches(path, "lists", 1))


@pytest.mark.parametrize("row_groups", [1, 20])
def test_a_batch_is_held_and_not_the_file(tmp_path: Path, row_groups: int) -> None:
    rows, length, batch_rows = 100_000, 20, 5_000
    values = np.random.default_rng(0).integers(0, 2**62, rows * length)  # no encoding makes them smaller
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values), length).cast(pa.list_(pa.int64()))
    path = write_lists(tmp_path / "file.parquet", lists, rows // row_groups)
    del lists
    before, held = pa.total_allocated_bytes(), []
    for _ in read_integer_list_batches(path, "lists", batch_rows):
        held.append(pa.total_allocated_bytes() - before)
    # Dictionaries, which parquet tries first, and a few batches at different stages; the file is 20 batches.
    assert len(held) == 20
    assert max(held) < 8 * batch_rows * length * 8 < values.nbytes / 2


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.string(), pa.list_(pa.list_(pa.uint8()))])
def test_a_column_without_rows_is_one_of_no_integers_whatever_its_type(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "file.parquet"
    pq.write_table(pa.table({"ids": pa.array([], kind)}), path)
    read = read_integers(read_table(path, required=("ids",)), "ids", path)
    assert read.dtype == np.int64 and len(read) == 0


def test_a_file_whose_column_names_are_no_text_is_no_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    pq.write_table(pa.table({"item_id": pa.array([1])}), path)
    content = path.read_bytes()
    assert content.count(b"item_id") > 1
    path.write_bytes(content.replace(b"item_id", b"item\xd1id"))
    with pytest.raises(DataError, match=r"file.parquet: expected a parquet file, got one that cannot be read"):
        read_table(path, required=("item_id",))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), pa.ArrowInvalid("no such value")])
def test_an_error_of_whoever_works_with_a_batch_is_not_told_as_one_of_the_file(
    tmp_path: Path, error: Exception
) -> None:
    path = write_lists(tmp_path / "file.parquet", pa.array([[1]]), 1)
    with pytest.raises(type(error)) as caught, open_parquet(path, ("lists",)) as file:
        for _ in file.iter_batches(1, ["lists"]):
            raise error
    assert caught.value is error


def test_a_damaged_page_is_told_as_one_of_the_file_wherever_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    table = pa.table({"ids": pa.array(range(5000))})
    pq.write_table(table, path, row_group_size=1000, use_dictionary=False, compression="none", write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for read in (lambda file: list(file.iter_batches(100, ["ids"])), lambda file: file.read(["ids"])):
        with (
            pytest.raises(DataError, match=r"file.parquet: expected a parquet file, got one that cannot be read"),
            open_parquet(path, ("ids",)) as file,
        ):
            read(file)
