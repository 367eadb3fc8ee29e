"""The GPU run without a GPU: its arguments, its processes, its file and its table; its checks on tiny shapes."""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cases import beam as beam_cases
from bench.cases import loss as loss_cases
from bench.step import cases as step_cases
from tools.gpu import process
from tools.gpu import run as gpu
from tools.gpu.kernel_checks import Compared, distance, outcome, same_bits
from tools.gpu.run import Part, Run, Suite
from tools.gpu.table import microseconds_of, table

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@WITHOUT_GPU
def test_without_a_gpu_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path / "results")]) == 2
    assert "no CUDA device" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--out", "x", "--parts", "ceilings,nonsense"],
        ["--out", "x", "--minutes", "0"],
        ["--out", "x", "--minutes", "nan"],
        ["--out", "x", "--kernels", "no-such-file.tar.xz"],
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        gpu.main(arguments)
    assert refusal.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_every_suite_that_is_named_is_there() -> None:
    for suite in gpu.SUITES:
        assert (process.ROOT / "bench" / f"bench_{suite.name}.py").is_file()


def test_the_points_that_are_measured_are_shapes_of_their_suites() -> None:
    shapes: dict[str, Iterable[str]] = {
        "beam_step": beam_cases.GPU_SHAPES,
        "log_prob": loss_cases.GPU_SHAPES,
        "grpo_loss": loss_cases.GPU_SHAPES,
        "training_step": step_cases.GPU_SETTINGS,
    }
    for suite in gpu.SUITES:
        assert set(suite.points) <= set(shapes.get(suite.name, ())), suite.name


def test_the_run_needs_no_more_than_the_kernels_do() -> None:
    code = "import sys, tools.gpu.run, tools.gpu.kernel_checks; print({'tawin', 'transformers'} & sys.modules.keys())"
    assert process.run_process([sys.executable, "-c", code], 120.0)["output"].strip() == "set()"


@pytest.mark.parametrize(
    ("is_set", "writable", "given"), [(False, False, True), (False, True, False), (True, False, False)]
)
def test_where_the_home_cannot_be_written_to_kernels_are_kept_elsewhere(
    is_set: bool, writable: bool, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(name, raising=False)
    if is_set:
        monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    monkeypatch.setattr(os, "access", lambda path, mode: writable)
    assert bool(process.compiler_caches()) == given


def test_what_takes_minutes_and_is_no_suite_is_run_only_where_it_is_named() -> None:
    optional = [part.name for part in gpu.optional_parts()]
    assert optional == ["decode_attention", "fuzz", "sanitize"]
    assert not set(optional) & {part.name for part in gpu.parts(sweep=True)}


def test_checks_come_first_and_tests_last() -> None:
    names = [part.name for part in gpu.parts(sweep=False)]
    assert names[:3] == ["ceilings", "checks", "log_prob"]
    assert names[-1] == "tests"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "results")


def test_a_failing_part_stops_no_other_and_every_part_is_saved(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_run: Run, _limit: float) -> dict[str, Any]:
        raise RuntimeError("out of luck")

    limits = []

    def works(_run: Run, limit: float) -> dict[str, Any]:
        limits.append(limit)
        return {"passed": True}

    report: dict[str, Any] = {"parts": {}}
    saved = []
    monkeypatch.setattr(gpu, "save_report", lambda path, report: saved.append((path.name, list(report["parts"]))))
    chosen = [Part("first", 1.0, breaks), Part("second", 1.0, works), Part("third", 2.0, works)]
    gpu.run_all(chosen, run, time.monotonic() + 60, report)
    names = ["first", "second", "third"]
    assert saved == [("results.json", names[:1]), ("results.json", names[:2]), ("results.json", names)]
    assert not report["parts"]["first"]["passed"]
    assert "out of luck" in report["parts"]["first"]["summary"]
    # What the first left over is the others': a third of the minute and what remains of it.
    assert 15.0 < limits[0] <= 20.0
    assert 50.0 < limits[1] <= 60.0


def test_a_process_out_of_time_is_ended_and_its_output_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_SECONDS_TO_FINISH", 0.5)
    deaf = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('here', flush=True); time.sleep(600)"
    )
    begin = time.monotonic()
    result = process.run_process([sys.executable, "-c", deaf], 2.0)
    assert time.monotonic() - begin < 60
    assert result["out_of_time"]
    assert result["status"] != 0
    assert "here" in result["output"] or result["seconds"] < 3  # a slow machine may not have come so far


def test_a_process_that_ends_tells_its_status_and_output() -> None:
    result = process.run_process([sys.executable, "-c", "print('well'); raise SystemExit(3)"], 60.0)
    assert (result["status"], result["output"].strip(), result["out_of_time"]) == (3, "well", False)


SUITE = """
import os, signal, time
import pytest
@pytest.mark.parametrize("way", ["ours", "slow"])
@pytest.mark.parametrize("name", ["a shape", "another"])
def test_op(benchmark, name, way):
    benchmark.group = name
    benchmark.extra_info["way"] = way
    benchmark.pedantic(time.sleep, (0.02 if way == "slow" else 0.001,), rounds=2)
"""
KILLED = """
    if (name, way) == ("another", "slow"):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A benchmark suite of its own."""
    for file in ("__init__.py", "gpu/__init__.py", "gpu/stop_after.py", "gpu/session.py"):
        copy = tmp_path / "tools" / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((process.ROOT / "tools" / file).read_text())
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "bench_sleep.py").write_text(SUITE)
    monkeypatch.setattr(process, "ROOT", tmp_path)
    return Suite("sleep", 1.0, ("a shape",))


def test_a_suite_is_measured_and_compared_in_the_table(suite: Suite, run: Run) -> None:
    result = gpu.run_suite(suite, replace(run, sweep=True), 60.0)
    assert result["passed"], result["output"]
    assert [one["extra_info"]["way"] for one in result["benchmarks"]] == ["ours", "slow"] * 2
    line = table({"parts": {"sleep": result}}).splitlines()[-1]
    assert line.startswith("sleep: another ")
    assert " slow " in line
    ours, slow = (microseconds_of(one) for one in result["benchmarks"][2:])
    assert f"{slow / ours:.2f}x" in line


def test_without_a_sweep_the_points_alone_are_measured(suite: Suite, run: Run) -> None:
    result = gpu.run_suite(suite, run, 60.0)
    assert [one["group"] for one in result["benchmarks"]] == ["a shape"] * 2


def test_what_a_killed_suite_had_measured_stands_in_the_lines(suite: Suite, run: Run) -> None:
    (process.ROOT / "bench" / "bench_sleep.py").write_text(SUITE + KILLED)
    result = gpu.run_suite(suite, replace(run, sweep=True), 60.0)
    assert result["status"] == -signal.SIGKILL
    assert len(result["benchmarks"]) == 3
    assert result["outcomes"] == {"passed": 3}
    assert "bench_sleep.py" in run.file("log").read_text() or "..." in run.file("log").read_text()


def test_a_suite_out_of_time_keeps_what_it_measured(suite: Suite, run: Run) -> None:
    text = SUITE.replace('["ours", "slow"]', "range(60)").replace(
        "benchmark.pedantic", "time.sleep(0.5); benchmark.pedantic"
    )
    (process.ROOT / "bench" / "bench_sleep.py").write_text(text)
    result = gpu.run_suite(suite, run, 16.0)
    assert result["passed"]
    assert 0 < len(result["benchmarks"]) < 60, result["output"]


def test_a_suite_that_fails_is_a_failure(suite: Suite, run: Run) -> None:
    (process.ROOT / "bench" / "bench_sleep.py").write_text("def test_agreement():\n    assert False\n")
    result = gpu.run_suite(suite, replace(run, sweep=True), 60.0)
    assert not result["passed"]
    assert "1 failed" in result["summary"]


def test_the_file_is_named_by_device_and_time_and_replaced_as_a_whole(tmp_path: Path) -> None:
    now = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    run = Run(gpu.base_path(tmp_path, "NVIDIA H200", now))
    path = run.file("json")
    assert path.name == "gpu-nvidia-h200-2026-01-02T030405Z.json"
    for parts in ({}, {"tests": {"passed": True}}):
        gpu.save_report(path, {"parts": parts})
        assert json.loads(path.read_text()) == {"parts": parts}
    assert list(path.parent.iterdir()) == [path]


@WITHOUT_GPU
def test_the_checks_pass_on_tiny_shapes_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "tools.gpu.kernel_checks", "--device", "cpu", "--size", "tiny"]
    result = gpu.judged_checks(process.run_process(command, 300.0, keep_all=True, TRITON_INTERPRET="1"))
    assert result["passed"], (result["summary"], result["output"])
    ops = {check["check"].split(",")[0].split(" of ")[0] for check in result["checks"]}
    assert ops == {"linear_log_probs", "beam_step", "tawin_grpo_loss", "advantages", "grpo_loss"}
    assert all(check["compared"] for check in result["checks"])


@pytest.mark.slow
@WITHOUT_GPU
def test_a_rehearsal_runs_a_suite_as_compiled(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--rehearse", "--minutes", "8", "--parts", "ceilings,grpo_loss"]
    assert gpu.main(arguments) == 0
    report = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert report["rehearsal"] and "rehearsal" in next(tmp_path.glob("*.json")).name
    assert list(report["parts"]) == ["ceilings", "grpo_loss"]
    assert {one["extra_info"]["way"] for one in report["parts"]["grpo_loss"]["benchmarks"]} >= {"ours", "reference"}


@WITHOUT_GPU
def test_the_checks_refuse_a_device_that_cannot_run_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # a part is never run in the interpreter because we were
    command = [sys.executable, "-m", "tools.gpu.kernel_checks", "--device", "cpu", "--size", "tiny"]
    result = gpu.judged_checks(process.run_process(command, 120.0, keep_all=True))
    assert result["status"] == 2
    assert "TRITON_INTERPRET" in result["output"]
    assert not result["passed"]


def test_an_error_is_a_part_of_the_largest_element_where_that_is_asked_for() -> None:
    ours, exact = torch.tensor([1.0, 4.5]), torch.tensor([1.0, 4.0], dtype=torch.float64)
    assert distance("x", ours, exact, 1.0).error == 0.5
    assert distance("x", ours, exact, 1.0, relative=True).error == 0.125


def test_nan_and_errors_above_what_is_allowed_are_no_good() -> None:
    assert Compared("x", 1.0, 1.0).is_good
    assert not Compared("x", 1.1, 1.0).is_good
    assert not distance("x", torch.tensor([torch.nan]), torch.zeros(1), 1.0).is_good
    assert not same_bits([torch.zeros(2)], [torch.tensor([0.0, 1e-30])]).is_good


def test_a_check_that_raises_has_failed_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    def breaks() -> list[Compared]:
        raise ValueError("no such luck")

    result = outcome("a check", breaks)
    assert not result["passed"]
    assert "no such luck" in result["error"]
    assert "Traceback" in capsys.readouterr().err
