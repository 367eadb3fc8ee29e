"""The memory-mapped form of interactions: the same data, made once, made anew for another source, in nobody's way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tawin.data.columns import DataError
from tawin.data.dataset import Dataset, load_dataset
from tawin.data.ragged import Ragged
from tawin.run.atomic import WriteError

MIB = 2**20


def write_folder(folder: Path, lists: list[list[int]], item_ids: list[int] | None = None) -> Path:
    """A data folder of users 100, 101, ... with the given items."""
    folder.mkdir(parents=True, exist_ok=True)
    users = pa.array(range(100, 100 + len(lists)), pa.int64())
    interactions = {"user_id": users, "item_ids": pa.array(lists, pa.list_(pa.int64()))}
    pq.write_table(pa.table(interactions), folder / "interactions.parquet", row_group_size=3)
    pq.write_table(pa.table({"item_id": item_ids or [50, 20, -4]}), folder / "items.parquet")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(dataset: Dataset) -> tuple[Any, ...]:
    sequences = [sequence.tolist() for sequence in dataset.sequences]
    return dataset.user_ids.tolist(), sequences, dataset.users_left_out, dataset.items.item_ids.tolist(), dataset.name


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lists=st.lists(st.lists(st.sampled_from([50, 20, -4]), max_size=6), max_size=12),
    batch_users=st.integers(1, 5),
)
def test_mapped_data_is_what_is_loaded_into_memory_whatever_the_batches(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, lists: list[list[int]], batch_users: int
) -> None:
    folder = write_folder(tmp_path_factory.mktemp("data"), [*lists, [20, 50, 50]])
    expected = [[[50, 20, -4].index(item) for item in items] for items in [*lists, [20, 50, 50]] if len(items) >= 3]
    monkeypatch.setattr("tawin.data.interactions.BATCH_USERS", batch_users)
    loaded, mapped = load_dataset(folder), load_dataset(folder, memory_map=folder / "mapped")
    assert [sequence.tolist() for sequence in loaded.sequences] == expected
    assert contents(loaded) == contents(mapped) == contents(load_dataset(folder, memory_map=folder / "mapped"))


def test_nothing_of_a_mapped_dataset_is_in_memory_or_can_be_written_to(tmp_path: Path) -> None:
    dataset = load_dataset(write_folder(tmp_path, [[50, 20, 50]]), memory_map=tmp_path / "mapped")
    sequences = Ragged.of(dataset.sequences)
    for array in (sequences.values, sequences.starts, sequences.stops, dataset.user_ids):
        assert not array.flags.owndata and not array.flags.writeable
    assert sequences.values.dtype == np.int32
    assert isinstance(sequences.values.base, np.memmap)


def test_the_mapped_form_is_made_once(tmp_path: Path) -> None:
    folder, mapped = write_folder(tmp_path / "data", [[50, 20, 50]]), tmp_path / "deep" / "mapped"
    first = contents(load_dataset(folder, memory_map=mapped))
    made = {path.name: path.stat().st_ino for path in mapped.iterdir()}
    assert sorted(Path(name).suffixes for name in made) == [
        [".json"],
        [".offsets", ".npy"],
        [".user_ids", ".npy"],
        [".values", ".npy"],
    ]
    assert contents(load_dataset(folder, memory_map=str(mapped))) == first
    assert {path.name: path.stat().st_ino for path in mapped.iterdir()} == made


@pytest.mark.parametrize("change", ["interactions", "time", "items", "place"])
def test_another_source_gets_another_form_and_the_old_one_stays(tmp_path: Path, change: str) -> None:
    folder, mapped = write_folder(tmp_path / "data", [[50, 20, 50]]), tmp_path / "mapped"
    old = load_dataset(folder, memory_map=mapped)
    before = {path.name: path.read_bytes() for path in mapped.iterdir()}
    if change == "interactions":
        write_folder(folder, [[20, 20, 20], [50, 50, 50]])
    elif change == "time":
        os.utime(folder / "interactions.parquet", ns=(0, 0))
    elif change == "items":
        write_folder(folder, [[50, 20, 50]], item_ids=[20, 50, -4])
    else:
        folder = write_folder(tmp_path / "moved" / "data", [[-4, -4, -4]])
    new = load_dataset(folder, memory_map=mapped)
    assert contents(new) == contents(load_dataset(folder))
    assert len(names(mapped)) == 8
    assert {name: (mapped / name).read_bytes() for name in before} == before
    assert [sequence.tolist() for sequence in old.sequences] == [[0, 1, 0]]


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    folder, mapped = write_folder(tmp_path / "data", [[50, 20, 50]]), tmp_path / "mapped"
    mapped.mkdir()
    (mapped / "values.npy").write_text("mine")
    load_dataset(folder, memory_map=mapped)
    assert (mapped / "values.npy").read_text() == "mine"
    # Beside the data itself is a fine place too.
    load_dataset(folder, memory_map=folder)
    assert contents(load_dataset(folder, memory_map=folder)) == contents(load_dataset(folder))


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"file: expected a folder for the memory-mapped data, found a file"):
        load_dataset(write_folder(tmp_path / "data", [[50, 20, 50]]), memory_map=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def shortened(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (".values.npy", cut_off, r"expected the files that load_dataset wrote; remove"),
        (".values.npy", shortened, r"1 users and 3 interactions do not go with arrays of .*\(2,\)"),
        (".user_ids.npy", shortened, r"do not go with arrays"),
        (".offsets.npy", Path.unlink, r"No such file"),
        (".offsets.npy", lambda path: path.write_bytes(b""), r"No data left in file"),
        (".json", cut_off, r"expected the files that load_dataset wrote"),
        (".json", lambda path: path.write_text("{}"), r"expected the files that load_dataset wrote"),
        (
            ".json",
            lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "made_of": 1})),
            r"made of 1",
        ),
    ],
)
def test_a_damaged_form_is_refused_by_name(tmp_path: Path, suffix: str, damage: Any, message: str) -> None:
    folder, mapped = write_folder(tmp_path / "data", [[50, 20, 50]]), tmp_path / "mapped"
    load_dataset(folder, memory_map=mapped)
    (damaged,) = (path for path in mapped.iterdir() if path.name.endswith(suffix))
    damage(damaged)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(folder, memory_map=mapped)
    assert str(damaged).removesuffix(suffix) in str(caught.value)


def test_a_conversion_that_stopped_before_its_header_is_made_again(tmp_path: Path) -> None:
    folder, mapped = write_folder(tmp_path / "data", [[50, 20, 50]]), tmp_path / "mapped"
    load_dataset(folder, memory_map=mapped)
    for path in mapped.iterdir():
        if path.suffix == ".json":
            path.unlink()
        else:
            path.write_bytes(b"half")
    assert contents(load_dataset(folder, memory_map=mapped)) == contents(load_dataset(folder))


WALK = """
import re, sys
from pathlib import Path
import numpy as np
from tawin.catalog.catalog import build_catalog, make_tokenizer
from tawin.config import CatalogConfig
from tawin.data.dataset import load_dataset, split_leave_one_out, training_windows

def anonymous():
    return int(re.search(r"RssAnon:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

dataset = load_dataset(sys.argv[1], memory_map=sys.argv[2])
ids, config = dataset.items.semantic_ids, CatalogConfig()
catalog = build_catalog(dataset, make_tokenizer(dataset, config, ids), config, training_sequences=[], semantic_ids=ids)
split = split_leave_one_out(dataset)
windows, first_targets = training_windows(split.sft, 10)
tokens, size = 0, 512
order = np.random.default_rng(0).permutation(len(windows))
for start in range(0, len(order), size):
    if start == 20 * size:
        before = anonymous()
    rows = order[start : start + size]
    tokens += int(catalog.encode_windows(windows.take(rows), first_targets[rows])[1].sum())
order = np.random.default_rng(1).permutation(len(split.rl))
for start in range(0, len(order), size):
    tokens += int(catalog.encode_histories(split.rl.take(order[start : start + size]).histories)[1].sum())
print(tokens, anonymous() - before)
"""


def test_a_walk_over_mapped_data_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    users, items = 150_000, 1000
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(3, 18, users))])
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(rng.integers(0, items, offsets[-1])))
    pq.write_table(pa.table({"user_id": np.arange(users), "item_ids": lists}), tmp_path / "interactions.parquet")
    codes = [[item // 100, item // 10 % 10, item % 10] for item in range(items)]
    pq.write_table(pa.table({"item_id": np.arange(items), "semantic_id": codes}), tmp_path / "items.parquet")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", WALK, tmp_path, tmp_path / "mapped"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    tokens, growth = map(int, found.stdout.split())
    # The items are 6 MB on disk, and what is encoded of them would be more than 50: malloc's own pages may come and go.
    assert offsets[-1] * 4 > 5.5 * MIB and tokens * 8 > 50 * MIB
    assert growth < 2 * MIB


@pytest.mark.parametrize("form", ["values", "times"])
def test_a_mapped_form_that_cannot_be_written_is_named_and_leaves_nothing(
    tmp_path: Path, limit_files: Callable[[int], AbstractContextManager[None]], form: str
) -> None:
    write_folder(tmp_path / "data", [[50, 20, -4]] * 3000)
    path = tmp_path / "data" / "interactions.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("times", pa.array([[1, 2, 3]] * 3000)), path)
    if form == "times":
        load_dataset(tmp_path / "data", memory_map=tmp_path / "mapped")
    before = names(tmp_path / "mapped") if form == "times" else []
    with (
        limit_files(1000),
        pytest.raises(WriteError, match=rf"^{tmp_path}/mapped/[^:]*: could not be written: .*File too large"),
    ):
        load_dataset(tmp_path / "data", memory_map=tmp_path / "mapped", with_times=form == "times")
    assert names(tmp_path / "mapped") == before
