"""A run that is stopped by a signal, by a full disk or by damage goes on as if nothing had been: the same bits.

Kills are in test_faults.py, where the process is a real one of its own.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tawin.cli import train
from tawin.evaluate import ranking as evaluation
from tawin.run.atomic import WriteError
from tawin.run.lock import lock_run
from tawin.run.states import states
from tawin.train import pipeline
from tawin.train.checkpoint import read_progress
from tawin.train.engine import Stage
from tools.faults.event_files import scalars

from .small_runs import SMALL, assert_same_run, metrics

OPTIONS = [*SMALL, "--policy.attention-dropout=0.1", "--grpo.negatives=sample", "--checkpoints.save-every=3"]
SFT_STEPS = 8  # four an epoch; then four of GRPO, evaluated after every second one

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train.main([*OPTIONS, "--out", str(out)])
    assert sum("loss" in line and line["stage"] == "sft" for line in metrics(out)) == SFT_STEPS
    return out


def at_update(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], Any]) -> None:
    """Have `act` called in the optimizer update of this number, from 1, of the next run."""
    update, done = Stage.update, []

    def acting(stage: Stage, **options: Any) -> float:
        done.append(stage.progress.step)
        if len(done) == number:
            act()
        return update(stage, **options)

    monkeypatch.setattr(Stage, "update", acting)


def stop_by(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def raise_an_error() -> None:
    raise RuntimeError("as if killed")


def go_on_and_compare(out: Path, whole: Path) -> None:
    train.main(["--out", str(out), "--resume"])
    assert_same_run(out, whole)
    newest, theirs = states(out / "checkpoints"), states(whole / "checkpoints")
    assert [state.name for state in newest] == [state.name for state in theirs]
    for ours, other in zip(newest, theirs, strict=True):
        for name in ("weights.safetensors", "optimizer.safetensors"):
            assert (ours / name).read_bytes() == (other / name).read_bytes()
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize(
    ("update", "number"), [(2, signal.SIGTERM), (4, signal.SIGINT), (SFT_STEPS + 1, signal.SIGTERM)]
)
def test_a_signal_ends_training_after_its_step_which_is_saved(
    update: int,
    number: signal.Signals,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the middle of an epoch, at the end of one, and in RL."""
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as stopping:
        at_update(stopping, update, stop_by(number))
        with pytest.raises(SystemExit) as ended:
            train.main([*OPTIONS, "--out", str(tmp_path / "run")])
    assert ended.value.code == 128 + number
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers
    state = states(tmp_path / "run" / "checkpoints")[-1]
    assert state.name == ("state-grpo-000001" if update > SFT_STEPS else f"state-sft-{update:06d}")
    said = capsys.readouterr().out
    assert f"stopped by {number.name}. Kept: {state}; go on with: tawin train --out {tmp_path}" in said
    go_on_and_compare(tmp_path / "run", whole)


@pytest.mark.parametrize("search", [1, 3, 4, 6], ids=["sft", "rl start", "rl", "test"])
def test_a_signal_cuts_an_evaluation_short_which_is_done_again(
    search: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The searches of a run, a batch each: two evaluations of SFT, two final ones, three of RL, two final ones."""
    beam_search, searches = evaluation.beam_search, []

    def stopping(*arguments: Any, **options: Any) -> Any:
        searches.append(len(searches))
        if len(searches) == order[search]:
            os.kill(os.getpid(), signal.SIGTERM)
        assert len(searches) <= order[search], "a search after the signal"
        return beam_search(*arguments, **options)

    order = {1: 1, 6: 4, 3: 5, 4: 6}
    with monkeypatch.context() as cut:
        cut.setattr(evaluation, "beam_search", stopping)
        with pytest.raises(SystemExit) as ended:
            train.main([*OPTIONS, "--out", str(tmp_path / "run")])
    assert ended.value.code == 128 + signal.SIGTERM
    progress = read_progress(states(tmp_path / "run" / "checkpoints")[-1])
    if search != 6:  # the state is that of the step itself, the evaluation is still to come
        assert progress.evaluated < progress.step or progress.step == 0
    go_on_and_compare(tmp_path / "run", whole)


@pytest.mark.parametrize(("update", "step"), [(8, 6), (SFT_STEPS + 4, 3)])
def test_nothing_random_goes_on_from_step_to_step_so_no_random_state_is_kept(
    update: int, step: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an interval; whatever any generator has given out meanwhile."""
    with monkeypatch.context() as stopping:
        at_update(stopping, update, raise_an_error)
        with pytest.raises(RuntimeError):
            train.main([*OPTIONS, "--out", str(tmp_path / "run")])
    assert read_progress(states(tmp_path / "run" / "checkpoints")[-1]).step == step
    start = Stage.start

    def disturbed(*arguments: Any, **options: Any) -> Stage:
        stage = start(*arguments, **options)
        torch.manual_seed(12345)
        np.random.seed(54321)
        random.seed(999)
        torch.rand(17)
        return stage

    monkeypatch.setattr(Stage, "start", disturbed)
    go_on_and_compare(tmp_path / "run", whole)


def test_states_are_saved_after_so_many_minutes_and_no_more_are_kept_than_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    save = Stage.save

    def noted(stage: Stage, **options: Any) -> None:
        save(stage, **options)
        saved.append((stage.progress.stage, stage.progress.step))
        assert len(states(stage.run.checkpoints)) <= 1

    monkeypatch.setattr(Stage, "save", noted)
    train.main([*SMALL, "--checkpoints.save-minutes=1e-9", "--checkpoints.keep=1", "--out", str(tmp_path / "run")])
    assert saved == [("sft", step) for step in range(1, SFT_STEPS + 1)] + [("grpo", step) for step in range(5)]


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """A copy of the whole run, as if it had been killed after its last step."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    results = json.loads((out / "results.json").read_text())
    (out / "results.json").write_text(json.dumps({name: part for name, part in results.items() if name != "grpo"}))
    return out


def test_a_damaged_state_is_replaced_by_the_one_before_it_with_a_warning(
    stopped: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, newest = states(stopped / "checkpoints")
    os.truncate(newest / "optimizer.safetensors", 1000)
    train.main(["--out", str(stopped), "--resume"])
    said = capsys.readouterr().err
    assert said.count("warning") == 1 and f"{newest} is damaged: optimizer.safetensors has 1,000 bytes" in said
    assert f"goes on from {before.name}" in said
    assert_same_run(stopped, whole)


def test_figures_that_a_crash_kept_from_tensorboard_are_shown_by_the_next_resume(whole: Path, tmp_path: Path) -> None:
    """They are in results.json, so that nothing is evaluated again."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    folders = [run / "tensorboard" / stage for run in (out, whole) for stage in ("sft", "grpo")]
    for path in (out / "tensorboard").rglob("*.results"):
        path.unlink()
    train.main(["--out", str(out), "--resume"])
    sft, grpo, *theirs = (scalars(folder) for folder in folders)
    assert [sft, grpo] == theirs and len(grpo["grpo/results/test/recall@3"]) == 1


def test_without_a_whole_state_a_run_is_refused_and_not_restarted(stopped: Path) -> None:
    lines = (stopped / "metrics.jsonl").read_bytes()
    for state in states(stopped / "checkpoints"):
        (state / "weights.safetensors").unlink()
    with pytest.raises(SystemExit, match=r"no whole state to go on from .*weights.safetensors is missing"):
        train.main(["--out", str(stopped), "--resume"])
    for state in states(stopped / "checkpoints"):
        shutil.rmtree(state)
    with pytest.raises(SystemExit, match=r"expected a state in .* found none, but results.json has the figures of sft"):
        train.main(["--out", str(stopped), "--resume"])
    assert (stopped / "metrics.jsonl").read_bytes() == lines


def test_a_state_of_another_config_is_refused(stopped: Path) -> None:
    """As after a change of config.yaml by hand, which --resume itself would take for the run's own."""
    path = stopped / "config.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.0002", "learning_rate: 0.5"))
    with pytest.raises(SystemExit, match="expected a state of this run's config"):
        train.main(["--out", str(stopped), "--resume"])


def test_a_run_of_an_earlier_version_goes_on(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which had one state, without a manifest, and saved it after evaluations alone."""
    out = tmp_path / "run"
    with monkeypatch.context() as stopping:
        at_update(stopping, 6, raise_an_error)
        with pytest.raises(RuntimeError):
            train.main([*OPTIONS, "--out", str(out)])
    state = states(out / "checkpoints")[-1].rename(out / "checkpoints" / "state")
    (state / "manifest.json").unlink()
    written = json.loads((state / "state.json").read_text())
    del written["config"], written["progress"]["evaluated"]
    (state / "state.json").write_text(json.dumps(written))
    assert read_progress(state).step == 4
    go_on_and_compare(out, whole)


@pytest.mark.parametrize("options", [[], ["--resume"]], ids=["new", "resumed"])
def test_a_second_training_into_a_folder_in_use_is_refused_by_process_and_host(
    stopped: Path, options: list[str]
) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in stopped.rglob("*") if path.name != ".lock")
    expected = rf"process {os.getpid()} on {os.uname().nodename} trains in this folder"
    with lock_run(stopped), pytest.raises(SystemExit, match=expected):
        train.main(["--out", str(stopped), *options])
    assert sorted((path, path.stat().st_mtime_ns) for path in stopped.rglob("*") if path.name != ".lock") == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path, left: int) -> None:
    """Leave so many bytes on it."""
    free = os.statvfs(disk)
    with open(disk / "filler", "wb") as file:
        file.write(bytes(max(0, free.f_bavail * free.f_frsize - left)))


@pytest.mark.parametrize(("update", "left"), [(2, 0), (2, 12_288), (6, 40_960), (SFT_STEPS + 1, 12_288)])
def test_a_full_disk_ends_the_run_with_a_message_and_room_lets_it_go_on(
    update: int, left: int, small_disk: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full at the next line of metrics.jsonl, in the next state, or a few files later."""
    out = small_disk / "run"
    with monkeypatch.context() as filling:
        at_update(filling, update, lambda: fill(small_disk, left))
        with pytest.raises(SystemExit) as ended:
            train.main([*OPTIONS, "--out", str(out)])
    said = str(ended.value.code)
    assert said.startswith(f"error: {out}") and "could not be written" in said and "No space left" in said
    assert f"make room, then go on with: tawin train --out {out} --resume" in said
    found = states(out / "checkpoints")
    assert (f"Kept: {found[-1]}" if found else "No state was saved yet") in said
    assert found or update < SFT_STEPS
    assert not list(out.rglob("*.writing"))
    (small_disk / "filler").unlink()
    go_on_and_compare(out, whole)


def test_a_limit_on_the_size_of_files_is_as_a_full_disk(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as limited:
        # A state's moments have 23,000 bytes, a model 11,000.
        at_update(limited, 1, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, limits[1])))
        try:
            with pytest.raises(SystemExit, match=r"state-sft-000003: could not be written: .*File too large"):
                train.main([*OPTIONS, "--out", str(out)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    go_on_and_compare(out, whole)


def test_a_disk_that_fails_in_the_very_last_save_loses_nothing_either(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise WriteError(errno.EIO, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(pipeline, "write_report", fails)
        with pytest.raises(SystemExit, match="Input/output error"):
            train.main([*OPTIONS, "--out", str(tmp_path / "run")])
    go_on_and_compare(tmp_path / "run", whole)
