"""What a log beyond memory costs: seconds to convert and walk it, and memory while it is walked.

Run: python -m bench.scale.data_walk [--interactions 50000000] [--items N] [--folder FOLDER] [--out [FOLDER]]

A data folder is drawn: users of 3 to 17 items, items of distinct four-level semantic ids, popular items first. It is
loaded in memory-mapped form, split, and walked as training does: one epoch of SFT's windows in the trainer's batches
and order, then every prompt of RL once, all encoded to tokens by the catalogue. The catalogue's trie is saved and
loaded memory-mapped. 4 bytes an interaction go to disk twice (parquet and mapped form).

Memory is read from /proc/self/status (Linux) after the first batch, at every tenth and at the end. RssAnon is memory of
the process itself; VmRSS counts pages of mapped files too, which the system takes back when it needs them. Flat means
that RssAnon does not grow with the walk. For the other figures freed memory is given back first; within a walk never.
Transparent huge pages are off for the process: when the kernel folds pages into a huge one, whatever the process does
at that moment, RssAnon grows by up to 2 MiB.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tawin_kernels import ItemTrie

from tawin.catalog.catalog import Catalog, build_catalog, make_tokenizer
from tawin.catalog.semantic_ids import build_semantic_ids
from tawin.config import CatalogConfig, SplitConfig
from tawin.data.dataset import (
    INTERACTIONS_FILE,
    ITEMS_FILE,
    Dataset,
    Split,
    load_dataset,
    split_leave_one_out,
    training_sequences,
    training_windows,
)
from tawin.data.interactions import map_interactions
from tawin.data.ragged import Ragged
from tawin.train.sft import epoch_batches

from ..cases.beam import LEVELS, draw_items
from ..measure import RESULTS, machine_facts, memory_bytes, reset_peak_bytes, write_results
from .trie_build import timed

INTERACTIONS = 50_000_000
INTERACTIONS_AN_ITEM = 50
SHORTEST, LONGEST = 3, 17  # items of a user, drawn evenly
USERS_AT_A_TIME = 100_000
BATCH = 64
POPULARITY = 2.0  # the item of rank r is drawn with a density that falls as r ** (1 / POPULARITY - 1)
MIB = 2**20
PR_SET_THP_DISABLE = 41  # of prctl(2)


@dataclass(frozen=True)
class Reading:
    """The process's memory at one moment, bytes."""

    done: float  # share of the walk
    anonymous: int
    resident: int

    @classmethod
    def now(cls, done: float) -> Reading:
        return cls(done, memory_bytes("RssAnon"), memory_bytes("VmRSS"))


@dataclass(frozen=True)
class Walk:
    """One pass over all windows or prompts."""

    name: str
    sequences: int
    interactions: int  # items that were encoded
    tokens: int
    seconds: float
    readings: list[Reading]

    @property
    def growth(self) -> int:
        """Anonymous bytes at the most, above those after the first batch."""
        return max(reading.anonymous for reading in self.readings) - self.readings[0].anonymous


@dataclass(frozen=True)
class Loading:
    """What it took to load something: seconds, memory that it left behind, and at the most."""

    seconds: float
    anonymous_before: int
    anonymous_after: int
    peak_bytes: int  # above what the process held before, pages of mapped files among it


def draw_data(folder: Path, interactions: int, items: int) -> None:
    """Write a data folder, a batch of users at a time."""
    rng = np.random.default_rng(0)
    item_ids = rng.permutation(items) + 1_000_000  # so that no id is its own dense index
    codes = pa.array(draw_items(items).astype(np.int32).reshape(-1))
    catalogue = {"item_id": item_ids, "semantic_id": pa.FixedSizeListArray.from_arrays(codes, LEVELS)}
    pq.write_table(pa.table(catalogue), folder / ITEMS_FILE)

    schema = pa.schema({"user_id": pa.int32(), "item_ids": pa.list_(pa.int32())})
    users, left = 0, interactions
    with pq.ParquetWriter(folder / INTERACTIONS_FILE, schema) as writer:
        while left:
            lengths = rng.integers(SHORTEST, LONGEST + 1, USERS_AT_A_TIME)
            lengths = lengths[np.cumsum(lengths) <= left - SHORTEST]
            if len(lengths) < USERS_AT_A_TIME:
                lengths = np.append(lengths, left - lengths.sum())  # the last user takes what is left
            ranks = (items * rng.random(lengths.sum()) ** POPULARITY).astype(np.int64)
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(item_ids[ranks], pa.int32()))
            writer.write_batch(pa.record_batch([pa.array(users + np.arange(len(lengths)), pa.int32()), lists], schema))
            users, left = users + len(lengths), left - int(lengths.sum())


def loaded(load: Callable[[], Any]) -> tuple[Any, Loading]:
    held = reset_peak_bytes()
    before = memory_bytes("RssAnon")
    made, seconds = timed(load)
    peak = memory_bytes("VmHWM") - held
    pa.default_memory_pool().release_unused()
    reset_peak_bytes()  # what is free, though glibc keeps it, is not held by what was loaded
    return made, Loading(seconds, before, memory_bytes("RssAnon"), peak)


def make_catalog(dataset: Dataset) -> Catalog:
    config = CatalogConfig()
    training = training_sequences(dataset)
    semantic_ids = build_semantic_ids(dataset, config, training_sequences=training)
    tokenizer = make_tokenizer(dataset, config, semantic_ids)
    return build_catalog(dataset, tokenizer, config, training_sequences=training, semantic_ids=semantic_ids)


def walk(name: str, lengths: np.ndarray, batches: Iterator[np.ndarray], encode: Callable[[np.ndarray], int]) -> Walk:
    """Encode all batches of rows; `encode` returns a batch's tokens, `lengths` says how many items each row has."""
    done = interactions = tokens = 0
    readings: list[Reading] = []
    start = time.perf_counter()
    for rows in batches:
        tokens += encode(rows)
        done += len(rows)
        interactions += int(lengths[rows].sum())
        if done * 10 >= len(readings) * len(lengths):
            readings.append(Reading.now(done / len(lengths)))
    return Walk(name, done, interactions, tokens, time.perf_counter() - start, readings)


def training_parts(dataset: Dataset) -> tuple[Split, Ragged, np.ndarray]:
    """What training holds of the data: the split (valid and test too), SFT's windows and their first targets."""
    max_history = SplitConfig().max_history
    split = split_leave_one_out(dataset, max_history=max_history)
    return split, *training_windows(split.sft, max_history)


def walks(catalog: Catalog, split: Split, windows: Ragged, first_targets: np.ndarray) -> list[Walk]:
    """An epoch of SFT's windows, then all of RL's prompts."""
    histories = Ragged.of(split.rl.histories)
    orders = (np.random.default_rng((0, stage, 0)) for stage in (0, 1))  # as in the trainer, of the first epoch
    reset_peak_bytes()

    def encode_windows(rows: np.ndarray) -> int:
        return int(catalog.encode_windows(windows.take(rows), first_targets[rows])[1].sum())

    def encode_histories(rows: np.ndarray) -> int:
        return int(catalog.encode_histories(split.rl.take(rows).histories)[1].sum())

    window_batches = epoch_batches(windows.lengths, BATCH, next(orders))
    order = next(orders).permutation(len(histories))
    prompt_batches = (order[start : start + BATCH] for start in range(0, len(order), BATCH))
    return [
        walk("training windows", windows.lengths, window_batches, encode_windows),
        walk("RL prompts", histories.lengths, prompt_batches, encode_histories),
    ]


def measure(folder: Path, interactions: int, items: int) -> dict[str, Any]:
    """Draw the data in an empty folder and measure all of it."""
    data, cache = folder / "data", folder / "cache"
    data.mkdir()
    _, draw_seconds = timed(lambda: draw_data(data, interactions, items))
    item_ids = pq.read_table(data / ITEMS_FILE, columns=["item_id"])["item_id"].to_numpy()
    _, conversion = loaded(lambda: map_interactions(data / INTERACTIONS_FILE, item_ids, cache))
    dataset, opening = loaded(lambda: load_dataset(data, memory_map=cache))
    parts, splitting = loaded(lambda: training_parts(dataset))
    catalog, catalog_seconds = timed(lambda: make_catalog(dataset))
    trie_path = folder / "trie.safetensors"
    catalog.trie.save(trie_path)
    in_memory = loaded(lambda: ItemTrie.load(trie_path))[1]
    mapped = loaded(lambda: ItemTrie.load(trie_path, memory_map=True))[1]
    return {
        "users": len(dataset.sequences),
        "interactions": interactions,
        "items": items,
        "parquet_bytes": sum(path.stat().st_size for path in data.iterdir()),
        "mapped_bytes": sum(path.stat().st_size for path in cache.iterdir()),
        "draw_seconds": draw_seconds,
        "convert": asdict(conversion),
        "load": asdict(opening),
        "split": asdict(splitting),
        "catalog_seconds": catalog_seconds,
        "trie": {
            "nodes": catalog.trie.num_nodes,
            "file_bytes": trie_path.stat().st_size,
            "load_in_memory": asdict(in_memory),
            "load_mapped": asdict(mapped),
        },
        "walks": [asdict(w) | {"anonymous_growth_bytes": w.growth} for w in walks(catalog, *parts)],
    }


def report(figures: dict[str, Any]) -> str:
    """The figures for people."""

    def loading(name: str, found: dict[str, Any]) -> str:
        before, after, peak = (found[key] / MIB for key in ("anonymous_before", "anonymous_after", "peak_bytes"))
        return f"  {name}: {found['seconds']:.2f} s, RssAnon {before:.1f} -> {after:.1f} MiB, peak {peak:.1f} MiB more"

    trie = figures["trie"]
    lines = [
        f"{figures['interactions']:,} interactions, {figures['users']:,} users, {figures['items']:,} items; "
        f"parquet {figures['parquet_bytes'] / MIB:.0f} MiB, mapped form {figures['mapped_bytes'] / MIB:.0f} MiB",
        loading("convert interactions", figures["convert"]),
        loading("load interactions and items", figures["load"]),
        loading("split and cut into windows", figures["split"]),
        f"  trie of {trie['nodes']:,} nodes, file {trie['file_bytes'] / MIB:.1f} MiB",
        loading("trie in memory", trie["load_in_memory"]),
        loading("trie mapped", trie["load_mapped"]),
    ]
    for found in figures["walks"]:
        rate = found["interactions"] / found["seconds"]
        lines.append(
            f"  {found['name']}: {found['sequences']:,} of {found['interactions']:,} items, {found['seconds']:.1f} s, "
            f"{rate:,.0f} interactions a second, RssAnon grows by {found['anonymous_growth_bytes'] / MIB:.2f} MiB"
        )
        shown = (f"{r['done']:.0%} {r['anonymous'] / MIB:.1f} / {r['resident'] / MIB:.1f}" for r in found["readings"])
        lines.append(f"    RssAnon / VmRSS, MiB: {', '.join(shown)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale.data_walk", description=__doc__.splitlines()[0])
    parser.add_argument("--interactions", type=int, default=INTERACTIONS)
    parser.add_argument("--items", type=int, help=f"default: an item for {INTERACTIONS_AN_ITEM} interactions")
    parser.add_argument("--folder", type=Path, help="new folder for the data, kept; default: one that is removed")
    parser.add_argument("--out", type=Path, nargs="?", const=RESULTS, help="write JSON there; alone: bench/results")
    options = parser.parse_args()
    items = options.items or max(100, options.interactions // INTERACTIONS_AN_ITEM)
    if options.interactions < 1000 or items < 1:
        parser.error("--interactions: expected 1000 or more, --items: 1 or more")
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    machine = machine_facts(torch.device("cpu"))
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    if options.folder is not None:
        options.folder.mkdir(parents=True)
        figures = measure(options.folder, options.interactions, items)
    else:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(Path(folder), options.interactions, items)
    print(report(figures))
    if options.out is not None:
        print(f"written: {write_results({'machine': machine, **figures}, options.out, 'data-walk')}")


if __name__ == "__main__":
    main()
