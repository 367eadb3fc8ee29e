"""Real training processes that are killed, that run into each other, that are read while they write.

The kills of `python -m tools.faults.run`, a few of them. Processes are forked from one that has imported train.py, but
for those that torchrun starts.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from tawin.evaluate.ranking import recommend
from tawin.report.page import write_report
from tawin.run.folder import RunFolder
from tawin.run.records import read_runs
from tawin.serve.load import load_serving
from tools.faults.run import OPTIONS, Aim, finish, kill, killed_run, log_of, processes, start
from tools.faults.run_differences import differences

from ...small_runs import metrics

ROOT = Path(__file__).parents[3]
LONGEST = 60.0  # seconds that a run may go on after one of its processes has died


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    return processes()


@pytest.fixture(scope="module")
def whole(context: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that was never killed, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "run", finish(start(context, folder / "run"), folder / "run")


def test_a_killed_run_goes_on_to_the_same_bits_inside_a_save_too(
    context: ForkServerContext, whole: tuple[Path, float], tmp_path: Path
) -> None:
    draw, kills = random.Random(0), []
    aims: list[Aim] = ["save", "run"]
    for number in range(12):
        out = tmp_path / str(number) / "run"
        # A run that was killed late has no save left to be killed in.
        kills += killed_run(context, out, aims if number % 2 == 0 else aims[::-1], whole[1], draw)
        assert differences(out, whole[0]) == []
        if len(kills) >= 3 and any(kill.writing for kill in kills):
            return
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True, check=True).stdout
    if kind.strip() == "tmpfs" and len(kills) >= 3:
        pytest.skip(f"writes to memory are too quick for a kill inside a save, {len(kills)} kills elsewhere: all equal")
    raise AssertionError(f"no kill inside a save among {kills}")


class EndsAsItIsKilled:
    """A process that looks alive for as long as nobody waits for its end, which is a good one."""

    pid = 1
    exitcode: int | None = None

    def join(self, seconds: float | None = None) -> None:
        if seconds is None:
            self.exitcode = 0

    def kill(self) -> None:
        pass


def test_a_kill_that_comes_too_late_is_none(tmp_path: Path) -> None:
    assert kill(cast(ForkServerProcess, EndsAsItIsKilled()), tmp_path / "run", "process", 0.0, random.Random(0)) is None


def test_of_two_trainings_into_one_folder_one_is_refused(
    context: ForkServerContext, whole: tuple[Path, float], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    both = [start(context, out) for _ in range(2)]
    for process in both:
        process.join()
    winner, loser = sorted(both, key=lambda process: process.exitcode or 0)
    assert (winner.exitcode, loser.exitcode) == (0, 1)
    said = log_of(out, loser.pid).read_text()
    assert f"process {winner.pid} on {os.uname().nodename} trains in this folder" in said or "holds another run" in said
    assert differences(out, whole[0]) == []


def test_a_run_can_be_read_at_any_time_while_it_is_written(context: ForkServerContext, tmp_path: Path) -> None:
    out, reports = tmp_path / "run", tmp_path / "report"
    process = start(
        context, out, [*OPTIONS, "--grpo.steps=60", "--grpo.learning-rate=1e-2", "--checkpoints.save-every=1"]
    )
    lines, answers = [], 0
    while process.exitcode is None:
        if not (out / "config.yaml").exists():
            continue
        ((group),) = read_runs([out])
        assert group.runs[0].results.keys() >= RunFolder.open(out).results.keys() - {"sft", "grpo", "users", "seconds"}
        lines.append(len(group.runs[0].lines))
        if not reports.exists():
            write_report([out], reports)
        try:
            serving = load_serving(out)
        except ValueError as error:
            assert "found none yet" in str(error)
            continue
        found = recommend(serving.model, serving.catalog, [np.array([1, 2])], serving.options.evaluation)
        assert np.isfinite(found.scores[0, :10]).all()
        answers += 1
    assert process.exitcode == 0
    assert lines == sorted(lines) and len(set(lines)) > 3 and answers > 0
    assert "not complete" in (reports / "report.html").read_text()


@pytest.fixture
def two_processes(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A training of two processes that has taken some steps, far from its end."""
    out = tmp_path / "run"
    process = torchrun(out, *OPTIONS, "--sft.epochs=200", "--sft.patience=1000")
    wait_for_steps(out, process, 12)
    yield process
    process.kill()
    process.communicate()


def torchrun(out: Path, *options: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [*launcher, "train.py", "--out", str(out), *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_steps(out: Path, process: subprocess.Popen[str], lines: int) -> None:
    path = out / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def rank(process: subprocess.Popen[str], number: int) -> int:
    """The process id of a rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (found,) = (
        int(pid)
        for pid in children
        if f"RANK={number}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    )
    return found


def steps(out: Path) -> list[int]:
    return [line["step"] for line in metrics(out) if "loss" in line]


def test_where_one_of_two_processes_dies_the_other_ends_with_a_message_and_two_go_on_until_told_to_stop(
    two_processes: subprocess.Popen[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    os.kill(rank(two_processes, 1), signal.SIGKILL)
    said, _ = two_processes.communicate(timeout=LONGEST)
    assert two_processes.returncode != 0
    assert said.count("error: another process of this run has ended, so this one cannot go on. Kept: ") == 1
    assert f"go on with: tawin train --out {out} --resume" in said
    assert "Signal 9 (SIGKILL) received by PID" in said  # by torchrun: which one it was

    resumed = torchrun(out, "--resume")
    try:
        wait_for_steps(out, resumed, len(metrics(out)) + 12)
        resumed.terminate()
        said, _ = resumed.communicate(timeout=LONGEST)
    finally:
        resumed.kill()
    assert said.count("stopped by SIGTERM. Kept: ") == 1
    done = steps(out)
    assert f"state-sft-{done[-1]:06d}" in said  # both saved the step that they had agreed upon
    assert done == list(range(1, len(done) + 1))
