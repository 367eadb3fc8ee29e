"""What a large catalogue's trie costs: seconds and memory to build it, bytes to keep it, seconds to save and load it.

Run: python -m bench.scale.trie_build [--items 1000000 10000000] [--threads 2] [--out [FOLDER]]

Two catalogues of each size, both of distinct four-level semantic ids in no order: a sparse one of 256 codes a level, in
which most items part before their last token, and a dense one of as few codes as hold that many items, whose tree is
nearly full. The goal is 10,000,000 items in under 60 s and 4 GiB on 2 cores.

Seconds are medians of several builds. Memory is the process's peak above what it held when the build began, the
catalogue's own tensor among it (Linux with glibc: VmHWM less VmRSS of /proc/self/status, the peak reset before). The
largest of the builds counts. Saving ends with fsync; loading reads a file that the system still has in memory.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from tawin_kernels import ItemTrie

from ..cases.beam import CODES, LEVELS, draw_items
from ..measure import RESULTS, machine_facts, memory_bytes, reset_peak_bytes, write_results

GOAL_ITEMS = 10_000_000
GOAL_SECONDS = 60.0
GOAL_BYTES = 4 * 2**30

Made = TypeVar("Made")


@dataclass(frozen=True)
class TrieFigures:
    """What was measured of one catalogue."""

    items: int
    codes: int
    nodes_of_levels: list[int]
    build_seconds: list[float]
    peak_bytes: int
    array_bytes: int
    file_bytes: int
    save_seconds: list[float]
    load_seconds: list[float]

    @property
    def nodes(self) -> int:
        return sum(self.nodes_of_levels)

    @property
    def is_within_goal(self) -> bool:
        return statistics.median(self.build_seconds) < GOAL_SECONDS and self.peak_bytes < GOAL_BYTES


def measure(items: int, codes: int, rounds: int) -> TrieFigures:
    """Build, save and load the trie of `items` drawn items, `rounds` times each."""
    token_ids = torch.from_numpy(draw_items(items, codes)) + codes * torch.arange(LEVELS)  # int64 [items, LEVELS]
    build_seconds, peaks = [], []
    for _ in range(rounds):
        held = reset_peak_bytes()
        trie, seconds = timed(lambda: ItemTrie.from_sequences(token_ids))
        build_seconds.append(seconds)
        peaks.append(memory_bytes("VmHWM") - held)
        del trie
    trie = ItemTrie.from_sequences(token_ids)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trie.safetensors"
        save_seconds = [timed(lambda: trie.save(path))[1] for _ in range(rounds)]
        load_seconds = [timed(lambda: ItemTrie.load(path))[1] for _ in range(rounds)]
        file_bytes = path.stat().st_size
    arrays = (trie.child_offsets, trie.edge_tokens, trie.item_offsets, trie.item_ids)
    ends = trie.level_offsets
    return TrieFigures(
        items=items,
        codes=codes,
        nodes_of_levels=[end - begin for begin, end in pairwise(ends)],
        build_seconds=build_seconds,
        peak_bytes=max(peaks),
        array_bytes=sum(array.nbytes for array in arrays),
        file_bytes=file_bytes,
        save_seconds=save_seconds,
        load_seconds=load_seconds,
    )


def timed(work: Callable[[], Made]) -> tuple[Made, float]:
    start = time.perf_counter()
    made = work()
    return made, time.perf_counter() - start


def fewest_codes(items: int) -> int:
    """Codes a level that suffice for this many distinct items."""
    codes = max(1, math.floor(items ** (1 / LEVELS)) - 1)
    while codes**LEVELS < items:
        codes += 1
    return codes


def report(figures: TrieFigures) -> str:
    """The figures for people."""
    kind = "sparse" if figures.codes == CODES else "dense"
    build, save, load = map(statistics.median, (figures.build_seconds, figures.save_seconds, figures.load_seconds))
    lines = [
        f"{figures.items:,} items, {figures.codes} codes a level ({kind}): {figures.nodes:,} nodes, by level "
        + ", ".join(f"{count:,}" for count in figures.nodes_of_levels),
        f"  build {build:.2f} s ({min(figures.build_seconds):.2f} to {max(figures.build_seconds):.2f}), "
        f"{figures.peak_bytes / 2**30:.2f} GiB above its input",
        f"  arrays {figures.array_bytes / 2**20:.1f} MiB, {figures.array_bytes / figures.nodes:.2f} bytes a node; "
        f"file {figures.file_bytes / 2**20:.1f} MiB, save {save:.2f} s, load {load:.2f} s",
    ]
    if figures.items == GOAL_ITEMS:
        verdict = "met" if figures.is_within_goal else "missed"
        lines.append(f"  goal (under {GOAL_SECONDS:.0f} s and {GOAL_BYTES / 2**30:.0f} GiB): {verdict}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale.trie_build", description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[1_000_000, GOAL_ITEMS], help="sizes of the catalogues")
    parser.add_argument("--rounds", type=int, default=3, help="how often each catalogue is built, saved and loaded")
    parser.add_argument("--threads", type=int, default=None, help="torch threads; default: torch's own choice")
    parser.add_argument("--out", type=Path, nargs="?", const=RESULTS, help="write JSON there; alone: bench/results")
    options = parser.parse_args()
    if min(*options.items, options.rounds, options.threads or 1) < 1:
        parser.error("--items, --rounds and --threads: expected 1 or more")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    machine = machine_facts(torch.device("cpu"))
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    measured = []
    for items in options.items:
        for codes in (CODES, fewest_codes(items)):
            measured.append(measure(items, codes, options.rounds))
            print(report(measured[-1]), flush=True)
    if options.out is not None:
        figures = {"machine": machine, "tries": [asdict(m) | {"nodes": m.nodes} for m in measured]}
        print(f"written: {write_results(figures, options.out, 'trie-build')}")


if __name__ == "__main__":
    main()
