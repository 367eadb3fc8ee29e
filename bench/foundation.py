"""How many times as fast as the peers: all promised ratios in one run.

Run: python -m bench.foundation [--rounds N] [--threads N] [--device cpu|cuda] [--out [FOLDER]]

Each case is checked first: both ways must give the same answer. Then they take turns, so that whatever else the machine
does hits both: a round is the peer's way once and ours three times, as ours is short. The ratio is that of the medians;
the ratio of the fastest runs, the least disturbed ones, stands beside it. With --out the figures are written as JSON.

Two settings of the environment matter, so they are printed with the machine. OMP_WAIT_POLICY=passive is needed where
other work shares the cores: OpenMP threads that spin for a partner without a core make all times meaningless. MALLOC_*
(glibc) or another allocator: by default glibc gives large blocks back to the system and takes them anew, which costs
the peers' large tensors much more than ours.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .cases.ratios import Case, foundation_cases
from .measure import RESULTS, machine_facts, seconds_of, write_device_results

OURS_PER_ROUND = 3


@dataclass(frozen=True)
class Measurement:
    """Seconds of one case, in the order in which they were taken."""

    case: Case
    agreement: str
    ours: list[float]
    peer: list[float]

    @property
    def ratio(self) -> float:
        """How many times as fast ours is, by the medians."""
        return statistics.median(self.peer) / statistics.median(self.ours)

    @property
    def best_ratio(self) -> float:
        """The same by the fastest run of each, the ones least disturbed."""
        return min(self.peer) / min(self.ours)


def measure(case: Case, rounds: int) -> Measurement:
    """Check the case, then time both ways in turns."""
    agreement = case.check()  # also the warm-up
    ours: list[float] = []
    peer: list[float] = []
    for _ in range(rounds):
        peer.append(seconds_of(case.peer))
        ours += [seconds_of(case.ours) for _ in range(OURS_PER_ROUND)]
    return Measurement(case, agreement, ours, peer)


def table(measurements: list[Measurement]) -> str:
    """The figures for people."""
    lines = [f"{'work':<27}{'peer':>9}{'ours':>9}{'ratio':>8}{'(best)':>9}{'goal':>7}   shape"]
    for m in measurements:
        peer, ours = statistics.median(m.peer), statistics.median(m.ours)
        lines.append(
            f"{m.case.name:<27}{peer:>7.3f} s{ours:>7.3f} s{m.ratio:>7.1f}x{m.best_ratio:>8.1f}x{m.case.goal:>6.0f}x"
            f"   {m.case.shape}\n{'':<27}same answer: {m.agreement}"
        )
    return "\n".join(lines)


def as_json(measurements: list[Measurement], machine: dict[str, Any]) -> dict[str, Any]:
    """The figures for machines, every single time included."""
    return {
        "machine": machine,
        "cases": [
            {
                "work": m.case.name,
                "shape": m.case.shape,
                "agreement": m.agreement,
                "goal": m.case.goal,
                "ratio_of_medians": m.ratio,
                "ratio_of_fastest": m.best_ratio,
                "peer_seconds": m.peer,
                "our_seconds": m.ours,
            }
            for m in measurements
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.foundation", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="times of the peer; ours is taken three times as often")
    parser.add_argument("--threads", type=int, default=None, help="torch threads; default: torch's own choice")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--out", type=Path, nargs="?", const=RESULTS, help="write JSON there; alone: bench/results")
    options = parser.parse_args()
    if options.rounds < 1 or (options.threads is not None and options.threads < 1):
        parser.error("--rounds and --threads: expected 1 or more")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    machine = machine_facts(options.device)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    measurements = []
    for case in foundation_cases(options.device):
        print(f"measuring: {case.name}, {case.shape}", flush=True)
        measurements.append(measure(case, options.rounds))
    print(table(measurements))
    if options.out is not None:
        print(f"written: {write_device_results(as_json(measurements, machine), options.out, 'foundation')}")


if __name__ == "__main__":
    main()
