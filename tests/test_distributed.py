"""Two processes train as one does: with DDP and with FSDP2, stopped and resumed, and when something goes wrong.

One command an engine, both started at once by a fixture; see distributed_worker.py for what they run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file
from torch import Tensor

from tawin.cli import train
from tawin.report.page import write_report
from tawin.run.processes import Processes
from tawin.run.states import states
from tawin.train import pipeline

from .distributed_worker import ENGINE_OPTIONS, OPTIONS, recommendations, run_until, steps
from .small_runs import SMALL, metrics

ROOT = Path(__file__).parents[1]
ENGINES: dict[str, dict[str, str]] = {
    "ddp": {},
    # What `accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP` sets.
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    },
}
HANG = 300.0  # seconds after which a command is taken to hang; it needs some 30

pytestmark = pytest.mark.usefixtures("no_report")


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    output: str


def start(*command: str, **environment: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [*launcher, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def commands(folder: Path) -> dict[str, Ended]:
    """The command of each engine, ended."""
    run_until(7, [*OPTIONS, "--out", str(folder / "start")])
    running = {}
    for engine, ending in (("ddp", "dies"), ("fsdp2", "is_refused")):
        (folder / engine).mkdir()
        running[engine] = start(
            "-m", "tests.distributed_worker", str(folder / "start"), str(folder / engine), ending, **ENGINES[engine]
        )
    with pytest.MonkeyPatch.context() as whole:
        whole.setattr(pipeline, "write_report", write_report)
        train.main([*OPTIONS, "--out", str(folder / "one")])
    ended = {}
    try:
        for engine, process in running.items():
            output, _ = process.communicate(timeout=HANG)
            ended[engine] = Ended(process.returncode, output)
    finally:
        for process in running.values():
            process.kill()
    return ended


@pytest.fixture(scope="module", params=ENGINES)
def two(request: pytest.FixtureRequest, commands: dict[str, Ended], folder: Path) -> Path:
    """What two processes of an engine wrote."""
    record = folder / request.param / "record.json"
    assert record.exists(), commands[request.param].output[-4000:]
    layers = ["", "model.model.layers.0", "model.model.layers.1"]
    assert json.loads(record.read_text())["sharded"] == (layers if request.param == "fsdp2" else [])
    return folder / request.param


def assert_equal_runs(ours: Path, theirs: Path) -> None:
    """The same lines, results and models, but for the order in which fp32 numbers were summed."""
    our_lines, their_lines = metrics(ours), metrics(theirs)
    assert [line.keys() for line in our_lines] == [line.keys() for line in their_lines]
    for line, expected in zip(our_lines, their_lines, strict=True):
        assert line == {name: approximately(value) for name, value in expected.items()}
    results: list[dict[str, Any]] = [json.loads((path / "results.json").read_text()) for path in (ours, theirs)]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
    for stage in ("sft", "grpo"):
        # AdamW divides by the size of a gradient: where that is next to nothing, its rounding counts.
        assert_close(weights(ours, stage), weights(theirs, stage), 1e-4)


def approximately(value: Any) -> Any:
    return pytest.approx(value, abs=1e-5, rel=1e-5) if isinstance(value, float) else value


def weights(run: Path, stage: str) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / stage / "model.safetensors")


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=tolerance, rtol=tolerance)


def test_two_processes_train_as_one_does(two: Path, folder: Path) -> None:
    assert_equal_runs(two / "run", folder / "one")


def test_lora_a_reference_and_what_is_drawn_are_as_with_one_process(two: Path, tmp_path: Path) -> None:
    engine = DistributedType.FSDP if two.name == "fsdp2" else DistributedType.MULTI_CPU
    train.main([*OPTIONS, *ENGINE_OPTIONS[engine], "--out", str(tmp_path / "one")])
    assert any(line.get("kl", 0.0) > 0 for line in metrics(tmp_path / "one"))
    assert_equal_runs(two / "other", tmp_path / "one")


def test_a_stopped_run_of_two_processes_goes_on_with_two(two: Path) -> None:
    assert_equal_runs(two / "stopped", two / "run")


def test_a_stopped_run_of_two_processes_goes_on_with_one(two: Path) -> None:
    train.main(["--out", str(two / "for_one"), "--resume"])
    assert_equal_runs(two / "for_one", two / "run")


def test_a_stopped_run_of_one_process_goes_on_with_two(two: Path, folder: Path) -> None:
    assert_equal_runs(two / "from_one", folder / "one")


def test_files_of_a_run_do_not_tell_how_many_wrote_it(two: Path, folder: Path) -> None:
    def files(run: Path) -> list[str]:
        names = (str(path.relative_to(run)) for path in run.rglob("*"))
        return sorted(re.sub(r"tfevents\..*", "tfevents", name) for name in names)  # when, where, which process

    assert files(two / "run") == files(folder / "one")
    newest = (states(run / "checkpoints")[-1] for run in (two / "run", folder / "one"))
    ours, theirs = (load_file(state / "optimizer.safetensors") for state in newest)
    assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}


def test_recommendations_for_an_odd_number_of_users_are_those_of_one_process(two: Path) -> None:
    items, scores = recommendations(Processes())
    for rank in range(2):
        found = np.load(two / f"recommendations.{rank}.npz")
        assert np.array_equal(found["items"], items)
        assert np.array_equal(found["scores"], scores)


def test_a_process_without_work_joins_and_changes_nothing(two: Path, tmp_path: Path) -> None:
    figures, gradients, _ = steps(Accelerator(cpu=True), tmp_path / "steps")
    assert 0 < figures["live_share"] == pytest.approx(3 / 8)
    record = json.loads((two / "record.json").read_text())
    assert record["figures"] == {name: approximately(value) for name, value in figures.items()}
    assert_close(load_file(two / "gradients.safetensors"), gradients, 1e-5)


def test_groups_with_a_gradient_are_dealt_out_evenly(two: Path) -> None:
    # 6 of the first batch; of the second each process had one.
    assert json.loads((two / "record.json").read_text())["dealt"] == [[3, 1], [3, 1]]


def test_what_an_engine_cannot_do_is_refused_by_name(two: Path) -> None:
    refusals = json.loads((two / "record.json").read_text())["refusals"]
    assert refusals[0].startswith("grpo.batch_size: expected a multiple of the 2 processes")
    if two.name == "fsdp2":
        assert refusals[1].startswith("policy.lora_rank: expected 0 with FSDP2")
    else:
        assert len(refusals) == 1


def test_a_refusal_ends_all_processes_with_one_message(commands: dict[str, Ended]) -> None:
    assert commands["fsdp2"].status != 0
    assert commands["fsdp2"].output.count("holds another run; pass --resume") == 1


def test_processes_skip_and_stop_alike_where_one_of_them_has_a_loss_that_is_not_finite(
    two: Path, commands: dict[str, Ended]
) -> None:
    assert json.loads((two / "record.json").read_text())["statuses"] == [1, 1]
    lines = [line for line in metrics(two / "guarded") if line["stage"] == "grpo" and "valid" not in line]
    assert [(line["step"], line.get("skipped_steps"), "loss" in line) for line in lines] == [
        (1, None, True),
        (2, 1, False),
        (3, 1, True),
        (4, 2, False),
    ]
    reports = [json.loads((two / "guarded" / f"nonfinite-grpo-step-{step}.json").read_text()) for step in (2, 4, 5)]
    assert [report["action"] for report in reports] == ["skipped", "skipped", "stopped"]
    assert all(report["figures"] == {"loss": "nan", "gradient norm": "nan"} for report in reports)
    assert all(one["tensor"].startswith("gradient of") for report in reports for one in report["found"])
    assert commands[two.name].output.count("error: grpo: the loss is nan") == 1
    state = load_file(states(two / "guarded" / "checkpoints")[-1] / "weights.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())


def test_a_process_that_fails_ends_the_command(commands: dict[str, Ended], folder: Path) -> None:
    assert commands["ddp"].status != 0
    assert commands["ddp"].output.count("RuntimeError: the second process has failed") == 1
    assert len(metrics(folder / "ddp" / "died")) > 0  # training had begun


@pytest.fixture
def as_it_was_afterwards() -> Iterator[None]:
    yield
    train.set_deterministic(False)


@pytest.mark.usefixtures("as_it_was_afterwards")
def test_a_deterministic_run_is_the_same_to_the_bit_stopped_or_not(tmp_path: Path) -> None:
    options = [*SMALL, "--deterministic", "--policy.attention-dropout=0.1", "--out"]
    train.main([*options, str(tmp_path / "first")])
    run_until(7, [*options, str(tmp_path / "second")])
    train.main(["--out", str(tmp_path / "second"), "--resume"])
    assert torch.are_deterministic_algorithms_enabled()
    assert metrics(tmp_path / "first") == metrics(tmp_path / "second")
    for stage in ("sft", "grpo"):
        ours, theirs = weights(tmp_path / "first", stage), weights(tmp_path / "second", stage)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
