"""What fuzzing draws for the readers: parquet files with hostile columns and bytes, saved catalogues that were damaged,
config files that say anything.

A reader gives what it promises or refuses with the error that it promises: DataError with the file's name for data and
catalogues, ValueError with the file's name for a config. What it gives is checked against the columns themselves.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from tawin_kernels import ItemTrie

from tawin.catalog.catalog import Catalog
from tawin.config import Config
from tawin.config.files import dump_yaml, load_yaml
from tawin.config.presets import PRESETS
from tawin.data.columns import DataError
from tawin.data.dataset import Dataset, load_dataset

from .trie import cut_off, draw_items, flip_bits, insert_or_remove, noise, overwrite, prefix_pair

Case = Callable[[np.random.Generator], str]

_INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint32(), pa.uint64())
DAMAGES = (cut_off, flip_bits, overwrite, insert_or_remove, noise)


def pick(random: np.random.Generator, choices: Any) -> Any:
    return choices[int(random.integers(0, len(choices)))]


def draw_ids(random: np.random.Generator, count: int) -> list[int]:
    """Distinct ids: dense, sparse, negative, or as large as 64 bits allow."""
    kind = random.integers(0, 4)
    if kind == 0:
        return list(range(count))
    low, high = pick(random, [(0, 200), (-100, 100), (-(2**63), 2**63 - 1), (2**31 - 60, 2**31 + 60)])
    return [int(value) for value in np.unique(random.integers(low, high, 4 * count + 8))[:count]]


def draw_tables(random: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of both files as Python values, in order for the most part."""
    items = draw_ids(random, int(random.integers(1, 9)))
    users = draw_ids(random, int(random.integers(1, 7)))
    sequences = [[pick(random, items) for _ in range(int(random.integers(0, 8)))] for _ in users]
    catalogue: dict[str, Any] = {"item_id": items}
    if random.random() < 0.6:
        titles = ["a", "", " ", "ü\U0001f600", "\x00", "x" * 300, None]
        catalogue["title"] = [pick(random, titles) for _ in items]
    if random.random() < 0.6:
        levels = int(random.integers(1, 4))
        catalogue["semantic_id"] = [random.integers(0, 5, levels).tolist() for _ in items]
    return {"user_id": users, "item_ids": sequences}, catalogue


def spoil(random: np.random.Generator, interactions: dict[str, Any], catalogue: dict[str, Any]) -> None:
    """Change a value or a column into something else; some changes are harmless."""
    table = pick(random, [interactions, catalogue])
    if not table:  # its only column was taken away before
        return
    name = pick(random, list(table))
    values = table[name]
    if len(values) == 0:
        return
    row = int(random.integers(0, len(values)))
    kind = random.integers(0, 9)
    if kind == 0:
        values[row] = None
    elif kind == 1:
        values[row] = pick(random, values)
    elif kind == 2:
        values[row] = [] if isinstance(values[row], list) else 2**62
    elif kind == 3 and isinstance(values[row], list):
        values[row] = [*values[row], pick(random, [None, -1, 2**62, 77])]
    elif kind == 4:
        del table[name]
    elif kind == 5:
        table[name] = [None] * len(values)
    elif kind == 6:
        table[name] = pick(random, [[0.5] * len(values), ["text"] * len(values), [True] * len(values)])
    elif kind == 7:
        table[name] = [[[1, 2]]] * len(values)
    else:
        for column in table:
            table[column] = []


def write(random: np.random.Generator, path: Path, columns: dict[str, Any]) -> None:
    """As parquet with column types of any width that holds the values; a column that arrow cannot make is left out."""
    arrays = {}
    for name, values in columns.items():
        kinds: list[Any] = [None, None, pick(random, _INTEGERS), pa.list_(pick(random, _INTEGERS))]
        kinds += [pa.large_list(pa.int64()), pa.dictionary(pa.int32(), pa.string()), pa.large_string(), pa.float64()]
        try:
            arrays[name] = pa.array(values, type=pick(random, kinds))
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            try:
                arrays[name] = pa.array(values)
            except (pa.ArrowException, OverflowError, TypeError, ValueError):
                continue
    rows = min((len(array) for array in arrays.values()), default=0)
    table = pa.table({name: array.slice(0, rows) for name, array in arrays.items()})
    pq.write_table(table, path, row_group_size=int(random.choice([1, 2, 1000])))


def require_dataset(found: Dataset, folder: Path) -> None:
    """What was read is what the files hold, as Arrow makes plain Python lists of it."""
    # Not pq.read_table, which refuses some damage of the footer that leaves all values as they are; no other column.
    columns = {"items": ("item_id", "title", "semantic_id"), "interactions": ("user_id", "item_ids")}
    files = {name: pq.ParquetFile(folder / f"{name}.parquet") for name in columns}
    items, interactions = (
        file.read([column for column in columns[name] if column in file.schema_arrow.names]).to_pydict()
        for name, file in files.items()
    )
    assert found.items.item_ids.tolist() == items["item_id"]
    kept = [
        (user, sequence)
        for user, sequence in zip(interactions["user_id"], interactions["item_ids"], strict=True)
        if len(sequence) >= 3
    ]
    assert found.user_ids.tolist() == [user for user, _ in kept]
    assert found.users_left_out == len(interactions["user_id"]) - len(kept)
    read = [found.items.item_ids[np.asarray(sequence)].tolist() for sequence in found.sequences]
    assert read == [sequence for _, sequence in kept]
    titles, ids = items.get("title"), items.get("semantic_id")
    assert found.items.titles == (titles if titles and any(title is not None for title in titles) else None)
    expected = [tuple(row) for row in ids] if ids and any(row is not None for row in ids) else None
    assert found.items.semantic_ids == expected
    if expected is not None:
        assert len({len(row) for row in expected}) == 1 and min(map(min, expected)) >= 0


def data_case() -> Case:
    """load_dataset, in memory and mapped."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz-data-")
    data, cache = Path(folder.name) / "data", Path(folder.name) / "cache"
    data.mkdir()

    def case(random: np.random.Generator) -> str:
        interactions, catalogue = draw_tables(random)
        for _ in range(int(random.integers(0, 3))):
            spoil(random, interactions, catalogue)
        for name, columns in (("interactions", interactions), ("items", catalogue)):
            write(random, data / f"{name}.parquet", columns)
        if random.random() < 0.15:
            path = data / f"{pick(random, ['interactions', 'items'])}.parquet"
            path.write_bytes(pick(random, DAMAGES)(path.read_bytes(), random))
        is_mapped = random.random() < 0.4
        shutil.rmtree(cache, ignore_errors=True)
        try:
            found = load_dataset(data, memory_map=cache if is_mapped else None)
            if is_mapped and random.random() < 0.5:  # once more, from what was mapped
                found = load_dataset(data, memory_map=cache)
        except DataError as error:
            assert str(data) in str(error) or str(cache) in str(error), error
            return "refused"
        require_dataset(found, data)
        return "passed"

    case.folder = folder  # type: ignore[attr-defined]  # lives as long as the case
    return case


def draw_catalog(random: np.random.Generator) -> Catalog:
    items = draw_items(random)
    if prefix_pair(items):
        items = [[*item, 1001] for item in items]
    tokens = torch.full((len(items), max(map(len, items))), -1)
    for row, item in enumerate(items):
        tokens[row, : len(item)] = torch.tensor(item)
    trie = ItemTrie.from_sequences(items)
    titles = [pick(random, ["a", None, "ü"]) for _ in items] if random.random() < 0.5 else None
    if titles is not None and not any(titles):
        titles = None
    ids = [tuple(random.integers(0, 9, 2).tolist()) for _ in items] if random.random() < 0.5 else None
    end = None if random.random() < 0.7 else 2
    return Catalog(np.arange(len(items)), titles, ids, tokens, trie, trie.leaf_of_item, (1,), 0, end)


def catalog_case() -> Case:
    """Catalog.load of a folder that save wrote, in which a file was damaged or a value changed."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz-catalog-")
    place = Path(folder.name) / "catalog"

    def case(random: np.random.Generator) -> str:
        shutil.rmtree(place, ignore_errors=True)
        saved = draw_catalog(random)
        saved.save(place)
        kind = random.integers(0, 5)
        if kind == 1:
            change_header(random, place / "catalog.json")
        elif kind == 2:
            change_column(random, place / "items.parquet")
        elif kind == 3:
            path = place / pick(random, ["catalog.json", "items.parquet"])
            path.write_bytes(pick(random, DAMAGES)(path.read_bytes(), random))
        elif kind == 4:
            (place / pick(random, ["catalog.json", "items.parquet"])).unlink()
        try:
            found = Catalog.load(place)
        except DataError as error:
            assert kind != 0 and str(place) in str(error), error
            return "refused"
        require_catalog(found, place)
        if kind == 0:
            assert torch.equal(found.token_ids, saved.token_ids) and found.titles == saved.titles
            assert (found.semantic_ids, found.prefix, found.end_token) == (saved.semantic_ids, (1,), saved.end_token)
        return "passed"

    case.folder = folder  # type: ignore[attr-defined]  # lives as long as the case
    return case


def change_header(random: np.random.Generator, path: Path) -> None:
    header = json.loads(path.read_text())
    name = pick(random, list(header))
    header[name] = pick(random, [None, -1, 3, 0.5, "x", [], [1, -1], [1.5], {}, True, 2**70, [2**70]])
    if random.random() < 0.2:
        del header[name]
    path.write_text(json.dumps(pick(random, [header, header, header, [header], 7])))


def change_column(random: np.random.Generator, path: Path) -> None:
    columns = pq.read_table(path).to_pydict()
    spoil(random, columns, columns)
    write(random, path, columns)


def require_catalog(found: Catalog, folder: Path) -> None:
    """Its tensors go together, and say what the file says."""
    tokens = pq.read_table(folder / "items.parquet").to_pydict()["token_ids"]
    assert [[token for token in row if token != -1] for row in found.token_ids.tolist()] == tokens
    assert found.trie.num_items == found.num_items == len(tokens)
    assert found.item_nodes.tolist() == found.trie.leaf_of_item.tolist()
    for item, leaf in enumerate(found.item_nodes.tolist()):
        assert item in found.trie.items_at(leaf).tolist()
    input_ids, mask = found.encode_histories([np.arange(min(3, found.num_items))])
    assert input_ids.shape == mask.shape and bool(mask.all())


_VALUES: list[Any] = [None, True, 0, 1, -1, 7, 10**30, 0.5, -0.0, 1e400, float("nan"), "", "auto", "1e-5", "cosine"]
_VALUES += [[], [1], {}, {"a": 1}, {1: 2}, "2024-01-01", "beam", "trie", "off", "stop"]


def config_case() -> Case:
    """load_yaml of documents with options that are unknown, out of range or of another type, and of broken YAML."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz-config-")
    path = Path(folder.name) / "config.yaml"
    plain = dataclasses.asdict(Config())

    def case(random: np.random.Generator) -> str:
        values: dict[Any, Any] = {}
        for _ in range(int(random.integers(0, 4))):
            name = pick(random, [*plain, "nonsense", 3, None])
            inner = plain.get(name)
            if isinstance(inner, dict) and random.random() < 0.8:
                option = pick(random, [*inner, "nonsense", 5])
                values.setdefault(name, {})
                if isinstance(values[name], dict):
                    known = inner.get(option)
                    values[name][option] = known if random.random() < 0.2 else pick(random, _VALUES)
            else:
                values[name] = pick(random, _VALUES)
        text = yaml.safe_dump(values, sort_keys=False) if random.random() < 0.8 else dump_yaml(Config())
        raw = text.encode()
        if random.random() < 0.2:
            raw = pick(random, DAMAGES)(raw or b"{}", random)
        path.write_bytes(raw)
        try:
            found = load_yaml(path, pick(random, [None, *PRESETS.values()]))
        except ValueError as error:
            assert str(error).startswith(str(path)), error
            return "refused"
        path.write_text(dump_yaml(found), encoding="utf-8")
        assert load_yaml(path) == found
        return "passed"

    case.folder = folder  # type: ignore[attr-defined]  # lives as long as the case
    return case
