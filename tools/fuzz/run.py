"""Random and hostile input, many thousand cases a target: is every answer right, and is every refusal a good one?

Run: python -m tools.fuzz.run TARGET... [--cases 100000] [--seconds 300] [--seed 0] [--out [FOLDER]]
     python -m tools.fuzz.run beam_search --cases 10000
     python -m tools.fuzz.run losses --case 4711                        one case again, by its number
     TRITON_INTERPRET=1 python -m tools.fuzz.run beam_step --impl triton --cases 300
     python -m tools.fuzz.run --device cuda --minutes 5                 the ops' kernels on a GPU (not run yet)

A case draws its input from a generator of its own, by seed and number, so it can be run again alone. It ends in one of
two good ways: "passed", the answer agrees with a slow one in fp64 that shares no code with the ops, or "refused", a
ValueError or TypeError that names what was wrong, where the input was. Anything else is a failure: another exception, a
wrong answer, an answer where a refusal was due, more than 20 seconds. A crash ends the process and with it the run.

The targets, and what each draws, are in the modules beside this one. tests/tools/fuzz/ runs a few cases of each.
--out writes fuzz-<date and time>.json. The exit status is 1 if a case failed.
"""

from __future__ import annotations

import argparse
import faulthandler
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from bench.measure import RESULTS, machine_facts, write_results

from . import (
    data as fuzz_data,
)
from . import (
    losses as fuzz_losses,
)
from . import (
    ops as fuzz_ops,
)
from . import (
    prepare as fuzz_prepare,
)
from . import (
    search as fuzz_search,
)
from . import (
    trie as fuzz_trie,
)
from .ops import Where

_SECONDS_A_CASE = 20
_FAILURES_KEPT = 20
_OUTCOMES = ("passed", "refused")

Case = Callable[[np.random.Generator], str]

OPS: dict[str, Callable[[Where], Case]] = {
    "beam_step": fuzz_ops.beam_step_case,
    "advantages": fuzz_losses.advantages_case,
    "losses": fuzz_losses.losses_case,
    "log_probs": fuzz_ops.log_probs_case,
    "tawin_loss": fuzz_losses.tawin_loss_case,
}
OTHERS: dict[str, Callable[[], Case]] = {
    "trie": fuzz_trie.trie_case,
    "trie_file": fuzz_trie.trie_file_case,
    "beam_search": fuzz_search.beam_search_case,
    "data": fuzz_data.data_case,
    "catalog": fuzz_data.catalog_case,
    "config": fuzz_data.config_case,
    "prepare": fuzz_prepare.prepare_case,
}
TARGETS = (*OPS, *OTHERS)


@dataclass
class Found:
    """What the cases of a target came to."""

    target: str
    seed: int
    cases: int = 0
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_OUTCOMES, 0))
    failures: int = 0
    first_failures: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def make_case(target: str, where: Where) -> Case:
    return OPS[target](where) if target in OPS else OTHERS[target]()


def run_case(case: Case, seed: int, number: int) -> tuple[str, str]:
    """The outcome of a case, and for a failure what happened."""
    generator = np.random.default_rng((seed, number))
    try:
        with time_limit(_SECONDS_A_CASE):
            outcome = case(generator)
    except Exception:
        return "failed", traceback.format_exc(limit=-6)
    if outcome not in _OUTCOMES:
        raise AssertionError(f"a case ends as one of {_OUTCOMES}, got {outcome!r}")
    return outcome, ""


class time_limit:
    """A context that raises TimeoutError in the main thread when its seconds are over."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._old = signal.signal(signal.SIGALRM, self._raise)
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._old)

    def _raise(self, _signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"a case took more than {self._seconds} seconds")


def run_target(target: str, where: Where, *, cases: int, seed: int = 0, seconds: float = float("inf")) -> Found:
    """So many cases, or those that fit into the seconds."""
    found = Found(target, seed)
    case = make_case(target, where)
    start = time.monotonic()
    for number in range(cases):
        outcome, error = run_case(case, seed, number)
        found.cases += 1
        if outcome != "failed":
            found.outcomes[outcome] += 1
        else:
            found.failures += 1
            if len(found.first_failures) < _FAILURES_KEPT:
                found.first_failures.append({"case": number, "error": error})
        if time.monotonic() - start > seconds:
            break
    found.seconds = round(time.monotonic() - start, 1)
    return found


def line(found: Found) -> str:
    outcomes = ", ".join(f"{found.outcomes[name]:,} {name}" for name in _OUTCOMES)
    return (
        f"{found.target}: {found.cases:,} cases, {outcomes}, {found.failures:,} failures in {found.seconds:.0f} s "
        f"(seed {found.seed})"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz.run", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"some of {', '.join(TARGETS)}; none: all")
    parser.add_argument("--cases", type=int, default=None, help="of each target; 1,000 unless a time is given")
    parser.add_argument("--case", type=int, default=None, help="the one case of this number, with its traceback")
    parser.add_argument("--seconds", type=float, default=None, help="of each target, at most")
    parser.add_argument("--minutes", type=float, default=None, help="of all targets together, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the ops; cuda: targets are ops")
    parser.add_argument("--impl", choices=("auto", "triton", "reference"), default="auto", help="of the ops")
    parser.add_argument("--out", type=Path, nargs="?", const=RESULTS, help="write JSON there; alone: bench/results")
    options = parser.parse_args(arguments)
    targets = options.targets or list(OPS if options.device == "cuda" else TARGETS)
    if unknown := sorted(set(targets) - set(TARGETS)):
        parser.error(f"TARGET: expected some of {', '.join(TARGETS)}, got {', '.join(unknown)}")
    numbers = [number for number in (options.cases, options.seconds, options.minutes) if number is not None]
    if min(numbers, default=1) <= 0 or options.seed < 0:
        parser.error("--cases, --seconds, --minutes: expected numbers above 0; --seed: 0 or more")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device: nothing to run")
        return 2
    torch.set_num_threads(1)
    where = Where(torch.device(options.device), options.impl)
    if options.case is not None:
        for target in targets:
            outcome, error = run_case(make_case(target, where), options.seed, options.case)
            print(f"{target}, case {options.case}: {outcome}\n{error}", end="")
        return 0

    seconds = options.seconds
    if options.minutes is not None:
        seconds = min(seconds or float("inf"), options.minutes * 60 / len(targets))
    cases = options.cases or (1000 if seconds is None else sys.maxsize)
    machine = machine_facts(where.device)
    results = []
    for target in targets:
        found = run_target(target, where, cases=cases, seed=options.seed, seconds=seconds or float("inf"))
        results.append(found)
        print(line(found), flush=True)
        for failure in found.first_failures:
            print(f"  case {failure['case']}: {failure['error'].strip().splitlines()[-1]}", flush=True)
    if options.out is not None:
        figures = {"machine": machine, "impl": options.impl, "targets": [asdict(found) for found in results]}
        print(f"written: {write_results(figures, options.out, 'fuzz')}")
    return 1 if any(found.failures for found in results) else 0


if __name__ == "__main__":
    faulthandler.enable()  # a crash says where
    sys.exit(main())
