"""What kernels do, counted while they run: a roofline without a GPU.

Run: python -m tools.ptx_machine.count [--target sm_90] [--cases PART_OF_A_NAME]

Per kernel and shape: bytes that loads and stores move (32-byte sectors of each warp's access: what the L2 sees), matrix
and other instructions of threads for each output, how many times the mean the longest program is, and how many times as
often shared memory is gone to as without bank conflicts. Nothing is timed. Shapes are small, tiles those of large ones.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from tawin_kernels import ItemTrie, beam_step, linear_log_probs

from .compile import TARGETS
from .core.programs import Observer, Programs
from .core.values import Array, Mask
from .switch import switch_on

_MATRIX = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")
_SECTOR = 32
_BANKS = 32


@dataclass
class Totals:
    """Of all launches of one kernel."""

    loaded: int = 0
    """Bytes of sectors."""
    stored: int = 0
    matrix: int = 0
    """Instructions of warps."""
    other: int = 0
    shared: int = 0
    """Accesses to shared memory that a warp makes in one go, were there no conflicts."""
    waits: int = 0
    """Further goes for words of one bank."""
    by_program: list[Array] = field(default_factory=list)
    """Instructions of each program, by batch."""

    @property
    def longest(self) -> float:
        """Instructions of the longest program, relative to the mean."""
        counts = np.concatenate(self.by_program)
        return float(counts.max() / counts.mean())


class Counter(Observer):
    def __init__(self) -> None:
        self.kernels: dict[str, Totals] = defaultdict(Totals)
        self._batch: Programs | None = None

    def _of(self, programs: Programs) -> Totals:
        totals = self.kernels[programs.launch.kernel.name]
        if programs is not self._batch:
            self._batch = programs
            totals.by_program.append(np.zeros(programs.programs, np.int64))
        return totals

    def block(self, programs: Programs, number: int, mask: Mask) -> None:
        totals, counts = self._of(programs), programs.launch.kernel.blocks[number].counts
        warps = programs.mask_of(mask).reshape(programs.programs, -1, 32).any(2).sum(1)
        matrix = sum(count for opcode, count in counts.items() if opcode.startswith(_MATRIX))
        everything = counts.total()
        totals.matrix += matrix * int(warps.sum())
        totals.other += (everything - matrix) * int(warps.sum())
        totals.by_program[-1] += everything * warps

    def global_access(self, programs: Programs, addresses: Array, threads: Array, size: int, *, is_store: bool) -> None:
        sectors = (addresses.astype(np.int64) // _SECTOR) + (threads // 32 << 44)
        moved = _SECTOR * len(np.unique(sectors))
        totals = self._of(programs)
        if is_store:
            totals.stored += moved
        else:
            totals.loaded += moved

    def shared_access(self, programs: Programs, addresses: Array, threads: Array, size: int) -> None:
        """Wide accesses go by 128 bytes at a time: 16 threads of 8 bytes, 8 of 16."""
        goes = threads // min(32, 128 // size)
        words = addresses.astype(np.int64)[:, None] // 4 + np.arange(max(1, size // 4))
        keys = np.unique((goes[:, None] << 32) + words)  # a word that several threads want is read once
        _, in_bank = np.unique((keys >> 32) * _BANKS + keys % _BANKS, return_counts=True)
        go_of_bank = np.unique((keys >> 32) * _BANKS + keys % _BANKS) // _BANKS
        ideal = len(np.unique(go_of_bank))
        longest = np.zeros(int(go_of_bank.max(initial=0)) + 1, np.int64)
        np.maximum.at(longest, go_of_bank, in_bank)
        totals = self._of(programs)
        totals.shared += ideal
        totals.waits += int(longest.sum()) - ideal


@dataclass(frozen=True)
class Case:
    name: str
    outputs: int
    """Logits, keys or sums that the call is for: what instructions are divided by."""
    run: Callable[[], None]


def _log_probs(rows: int, H: int, V: int, *, backward: bool, one_token: bool = False) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, H, generator=draw).bfloat16().requires_grad_() for size in (rows, V))
    ids = torch.zeros(rows, dtype=torch.int64) if one_token else torch.randint(0, V, (rows,), generator=draw)
    log_probs = linear_log_probs(hidden, weight, ids, impl="triton")
    if backward:
        log_probs.sum().backward()


def _beam_step(
    B: int, W: int, K: int, trie: ItemTrie, H: int = 128, V: int = 6000, normalizer: Literal["vocab", "trie"] = "trie"
) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(B, W, H, generator=draw).bfloat16(), torch.randn(V, H, generator=draw).bfloat16()
    nodes = torch.zeros(B, W, dtype=torch.int64) if W == 1 else torch.arange(1, W + 1).expand(B, W)
    depth = 0 if W == 1 else 1
    beam_step(hidden, weight, trie, nodes, torch.zeros(B, W), K, normalizer=normalizer, depth=depth, impl="triton")


def _codes(levels: int, codes: int, items: int) -> ItemTrie:
    draw = torch.Generator().manual_seed(0)
    offsets = torch.arange(levels) * codes
    return ItemTrie.from_sequences(torch.randint(0, codes, (items, levels), generator=draw) + offsets)


def cases() -> list[Case]:
    """Each shows an item of the review of the kernels."""
    wide, deep = ItemTrie.from_sequences(torch.arange(6000)[:, None]), _codes(4, 256, 4000)
    return [
        Case("11 head, many rows: 512 x 256 x 2,048", 512 * 2048, partial(_log_probs, 512, 256, 2048, backward=False)),
        Case("12 wide root: 64 prompts, 1 beam, 6,000 children", 64 * 6000, partial(_beam_step, 64, 1, 16, wide)),
        Case("13 selection: 4 prompts, 16 beams to 16", 4 * 16, partial(_beam_step, 4, 16, 16, deep)),
        Case(
            "14 token logits: 64 prompts, 16 beams, 4 levels of 256", 1024 * 256, partial(_beam_step, 64, 16, 16, deep)
        ),
        Case("15 head, few rows: 16 x 256 x 2,048", 16 * 2048, partial(_log_probs, 16, 256, 2048, backward=False)),
        Case(
            "16 backward, one token of 256 rows",
            256 * 512,
            partial(_log_probs, 256, 64, 512, backward=True, one_token=True),
        ),
    ]


def table(case: Case, kernels: dict[str, Totals]) -> list[str]:
    """Markdown rows of a case: its kernels with a twentieth of the instructions and more, the most first."""
    rows = []
    everything = sum(totals.other for totals in kernels.values())
    for name, totals in sorted(kernels.items(), key=lambda item: -item[1].other):
        if totals.other < everything / 20:
            break
        conflicts = 1 + totals.waits / totals.shared if totals.shared else 1.0
        cells = [
            case.name,
            name.removesuffix("_kernel"),
            f"{totals.loaded / 1e6:,.3f}",
            f"{totals.stored / 1e6:,.3f}",
            f"{32 * totals.matrix / case.outputs:.3g}",
            f"{32 * totals.other / case.outputs:.3g}",
            f"{totals.longest:.2f}",
            f"{conflicts:.1f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=list(TARGETS), default="sm_90")
    parser.add_argument("--cases", default="", metavar="PART_OF_A_NAME")
    options = parser.parse_args(arguments)
    counter = Counter()
    switch_on(options.target, counter)
    heads = ("case", "kernel", "loaded, MB", "stored, MB", "matrix", "other", "longest / mean", "bank conflicts")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for case in cases():
        if options.cases in case.name:
            counter.kernels.clear()
            case.run()
            print("\n".join(table(case, counter.kernels)), flush=True)


if __name__ == "__main__":
    main()
