"""Kill the real training process at random moments and see that nothing is lost: the same bits as if never killed.

Run: nice python -m tools.faults.run [--kills 50] [--seed 0] [--out [FOLDER]]

One run of train.py is left alone. Then runs of the same config are each killed by SIGKILL one to three times, resumed
after every kill, and compared with it when they have ended: see run_differences.py. They are runs as a user has them,
with TensorBoard's event files and the report, but for their size.

Each training is a process of its own that runs train.py's main. It is forked from one that has imported everything and
done nothing: fifty kills would else cost a hundred imports.

A kill is aimed in one of three ways: at any time since the process was started; at any time since it has begun with the
run folder; or inside a write, by watching for what is being written. There the process is stopped (SIGSTOP) a random
while later and killed if the part is still there, so that it has surely died inside it. Of the first two about half
fall into the report, which takes as long as a training as small as this.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, Literal

import torch

from bench.measure import RESULTS, machine_facts, write_results
from tawin.cli import train
from tawin.run.states import states

from .run_differences import differences

# Both stages, with dropout and sampled data order; saves at evaluations, between them, and in the middle of epochs.
OPTIONS = [
    "--synthetic.num-users=120",
    "--synthetic.num-items=30",
    "--synthetic.num-clusters=5",
    "--catalog.codes=8",
    "--policy.hidden-size=16",
    "--policy.layers=1",
    "--policy.heads=2",
    "--policy.intermediate-size=24",
    "--policy.attention-dropout=0.1",
    "--sft.epochs=3",
    "--sft.batch-size=16",
    "--grpo.steps=12",
    "--grpo.batch-size=8",
    "--grpo.group-size=6",
    "--grpo.evaluate-every=5",
    "--evaluation.beam-width=12",
    "--evaluation.valid-users=40",
    "--checkpoints.save-every=3",
]
Aim = Literal["process", "run", "save"]
AIMS: tuple[Aim, ...] = ("process", "run", "save", "save")
SAVES_PASSED = 0.1  # share of the writes seen in a process at which it is killed
LONGEST_DELAY = 0.006  # seconds from the start of a write to the kill in it


@dataclass(frozen=True)
class Kill:
    """Where a kill fell."""

    aim: Aim
    seconds: float
    """Since the process was started."""
    writing: list[str]
    """What was half written at that moment, relative to the run folder."""
    newest_state: str | None
    metrics_lines: int
    results: list[str]
    """Stages whose figures were in results.json."""

    @property
    def where(self) -> str:
        if "grpo" in self.results:
            return "after training"
        if self.newest_state is None:
            return "before the first state"
        return "grpo" if self.newest_state.startswith("state-grpo") or "sft" in self.results else "sft"


def processes() -> ForkServerContext:
    """Where trainings are started from, once all is imported there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tawin.cli.train", "torch.utils.tensorboard", "bench.measure"])
    first = context.Process(target=int)
    first.start()
    first.join()
    return context


def start(context: ForkServerContext, out: Path, options: Sequence[str] = OPTIONS) -> ForkServerProcess:
    """A training process into `out`: a new run with these options, or the one that is there gone on with."""
    process = context.Process(target=_train, args=(out, options), daemon=True)
    process.start()
    return process


def _train(out: Path, options: Sequence[str]) -> None:
    out.parent.mkdir(exist_ok=True)
    with open(log_of(out, os.getpid()), "w") as log:  # what it says, also what libraries and signal handlers do
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    resumes = (out / "config.yaml").exists()
    train.main(["--out", str(out), *(["--resume"] if resumes else options)])


def log_of(out: Path, pid: int | None) -> Path:
    """What a process has said."""
    return out.with_name(f"{out.name}.{pid}.log")


def finish(process: ForkServerProcess, out: Path) -> float:
    """Wait for a process that is to end well; its seconds."""
    begun = time.monotonic()
    process.join()
    _require_good_end(process, out)
    return time.monotonic() - begun


def _require_good_end(process: ForkServerProcess, out: Path) -> None:
    if process.exitcode != 0:
        raise RuntimeError(
            f"training ended with status {process.exitcode}:\n{log_of(out, process.pid).read_text()[-4000:]}"
        )


def kill(process: ForkServerProcess, out: Path, aim: Aim, seconds: float, draw: random.Random) -> Kill | None:
    """Kill a process at a random moment; None where it ended before that. seconds: about what a run takes."""
    begun = time.monotonic()
    if aim == "save":
        sent = _kill_in_save(process, out, draw)
    else:
        if aim == "run":
            while process.exitcode is None and not _has_begun(process, out):
                time.sleep(0.01)
        sent = _kill_after(process, out, draw.uniform(0.0, seconds))
    took = time.monotonic() - begun
    process.join()
    if not (sent and process.exitcode == -signal.SIGKILL):  # a signal to a process that had just ended kills nobody
        _require_good_end(process, out)
        return None
    return _what_was_left(out, aim, took)


def _has_begun(process: ForkServerProcess, out: Path) -> bool:
    lock = out / ".lock"
    return lock.exists() and f"process {process.pid} " in lock.read_text()


def _kill_after(process: ForkServerProcess, out: Path, seconds: float) -> bool:
    process.join(seconds)
    if process.exitcode is not None:
        return False
    process.kill()
    return True


def _kill_in_save(process: ForkServerProcess, out: Path, draw: random.Random) -> bool:
    before: set[str] = set()
    while process.exitcode is None:
        now = set(being_written(out))
        if now - before and draw.random() < SAVES_PASSED:
            time.sleep(draw.uniform(0.0, LONGEST_DELAY))
            _send(process, signal.SIGSTOP)
            if _is_stopped(process) and being_written(out):
                process.kill()
                return True
            _send(process, signal.SIGCONT)
        before = now
        time.sleep(0.0003)
    return False


def _send(process: ForkServerProcess, number: int) -> None:
    if process.pid is not None and process.exitcode is None:
        os.kill(process.pid, number)


def _is_stopped(process: ForkServerProcess) -> bool:
    """Waits for the signal to have its effect; False where the process has ended."""
    while process.exitcode is None:
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state in "TZ":
            return state == "T"
    return False


def being_written(out: Path) -> list[str]:
    """Parts in a run folder, the names that they are to have."""
    return [
        f"{prefix}{name[1 : -len('.writing')]}"
        for folder, prefix in ((out, ""), (out / "checkpoints", "checkpoints/"))
        if folder.is_dir()
        for name in os.listdir(folder)
        if name.endswith(".writing")
    ]


def _what_was_left(out: Path, aim: Aim, seconds: float) -> Kill:
    found = states(out / "checkpoints")
    metrics, results = out / "metrics.jsonl", out / "results.json"
    return Kill(
        aim,
        round(seconds, 3),
        being_written(out) if out.exists() else [],
        found[-1].name if found else None,
        metrics.read_bytes().count(b"\n") if metrics.exists() else 0,
        [stage for stage in ("sft", "grpo") if results.exists() and stage in json.loads(results.read_text())],
    )


def killed_run(
    context: ForkServerContext, out: Path, aims: list[Aim], seconds: float, draw: random.Random
) -> list[Kill]:
    """A run that is killed and resumed as often as there are aims, and then left to end; the kills that hit it."""
    kills: list[Kill] = []
    for aim in aims:
        found = kill(start(context, out), out, aim, seconds, draw)
        if found is None:
            return kills
        kills.append(found)
        _wait_for_the_next_second()
    finish(start(context, out), out)
    return kills


def _wait_for_the_next_second() -> None:
    """TensorBoard reads event files in the order of the second of their names: no real start comes as soon as here."""
    second = int(time.time())
    while int(time.time()) == second:
        time.sleep(0.01)


def measure(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Runs until there were so many kills."""
    draw, context = random.Random(seed), processes()
    whole = folder / "whole" / "run"  # all have the same name, which their reports show
    seconds = finish(start(context, whole), whole)
    runs: list[dict[str, Any]] = []
    done: list[Kill] = []
    while len(done) < kills:
        out = folder / str(len(runs)) / "run"
        aims = [draw.choice(AIMS) for _ in range(min(draw.randint(1, 3), kills - len(done)))]
        found = killed_run(context, out, aims, seconds, draw)
        unequal = differences(out, whole)
        runs.append({"kills": [asdict(one) | {"where": one.where} for one in found], "differences": unequal})
        done += found
        print(f"{len(done)} kills: {[(one.where, *one.writing) for one in found]}: {unequal or 'equal'}", flush=True)
    return {
        "options": OPTIONS,
        "seed": seed,
        "seconds_of_a_run": round(seconds, 2),
        "kills": len(done),
        "runs": len(runs),
        "runs_equal": sum(not run["differences"] for run in runs),
        "kills_by_place": dict(Counter(one.where for one in done)),
        "kills_inside_a_write": sum(bool(one.writing) for one in done),
        "kills_inside_a_write_by_file": dict(Counter(name for one in done for name in one.writing)),
        "of_runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.faults.run", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, nargs="?", const=RESULTS, help="write JSON there; alone: bench/results")
    options = parser.parse_args()
    if options.kills < 1:
        parser.error("--kills: expected 1 or more")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # its reader warns of steps that it is to forget
    machine = machine_facts(torch.device("cpu"))
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.kills, options.seed)
    print(f"{figures['kills']} kills in {figures['runs']} runs: {figures['runs_equal']} runs equal to the bit")
    if options.out is not None:
        print(f"written: {write_results({'machine': machine, **figures}, options.out, 'faults')}")
    if figures["runs_equal"] != figures["runs"]:
        sys.exit("runs differ")


if __name__ == "__main__":
    main()
