"""Trackers get what metrics.jsonl gets, once a step, however often a run is stopped and goes on."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from tensorboard.summary.writer import event_file_writer

from tawin.config import Config, TrackingConfig
from tawin.config.files import load_yaml
from tawin.run import tracking
from tawin.run.folder import RunFolder
from tawin.run.records import read_runs
from tawin.run.tracking import NOT_TRACKED, Service, flat, numbers, require_tracker, start_tracking
from tools.faults.event_files import read_events, scalars

RESULTS = {"valid": {"recall@3": 0.25}, "test": {"recall@3": 0.5}}


@pytest.fixture(autouse=True)
def as_in_a_run() -> None:
    Accelerator(cpu=True)  # accelerate's trackers ask it which process this is


def config_for(to: str) -> Config:
    return dataclasses.replace(Config(), tracking=TrackingConfig(to=to))  # type: ignore[arg-type]


def line(stage: str, step: int, **figures: Any) -> dict[str, Any]:
    return {"stage": stage, "step": step, "seconds": 0.5 * step, **figures}


def train(run: RunFolder, stage: str, first: int, last: int, *, begin: int | None) -> None:
    """Steps of a stage with an evaluation behind each second one, logged as the trainer does."""
    run.tracking.begin(stage, begin)
    for step in range(first, last + 1):
        run.log(line(stage, step, loss=10.0 - step))
        if step % 2 == 0:
            run.log(line(stage, step, valid={"recall@3": step / 8}))


def test_tensorboard_gets_every_figure_by_stage_and_step_and_the_config_and_the_results(tmp_path: Path) -> None:
    config = config_for("tensorboard")
    with RunFolder.create(tmp_path / "run", config).tracked(config) as run:
        train(run, "sft", 1, 4, begin=None)
        run.tracking.add_results("sft", RESULTS)
        train(run, "grpo", 0, 2, begin=None)
    found = scalars(tmp_path / "run" / "tensorboard" / "sft")
    assert found.pop("sft/loss") == [(1, 9.0), (2, 8.0), (3, 7.0), (4, 6.0)]
    assert found.pop("sft/valid/recall@3") == [(2, 0.25), (4, 0.5)]
    assert found.pop("sft/results/test/recall@3") == [(4, 0.5)]
    assert found.keys() == {"sft/seconds", "sft/results/valid/recall@3"}
    assert scalars(tmp_path / "run" / "tensorboard" / "grpo")["grpo/valid/recall@3"] == [(0, 0.0), (2, 0.25)]
    events = read_events(tmp_path / "run" / "tensorboard" / "sft")
    (text,) = events.Tensors("config/text_summary")
    assert b"learning_rate: 0.002" in text.tensor_proto.string_val[0]
    summary = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"grpo/tawin/anchor" in summary


@pytest.mark.parametrize("stopped_at", [3, 6])
def test_a_resumed_stage_shows_each_step_once_and_leaves_the_other_stage_alone(tmp_path: Path, stopped_at: int) -> None:
    config = config_for("tensorboard")
    with RunFolder.create(tmp_path / "run", config).tracked(config) as run:
        train(run, "sft", 1, 6, begin=None)
        train(run, "grpo", 0, 2, begin=None)
        size = run.metrics_size
        for step in range(3, stopped_at + 1):  # of these nothing is saved
            run.log(line("grpo", step, loss=99.0))
    run = RunFolder.open(tmp_path / "run")
    run.forget_metrics_after(size)
    with run.tracked(config) as resumed:
        train(resumed, "grpo", 3, 4, begin=2)
    found = scalars(tmp_path / "run" / "tensorboard" / "grpo")
    assert found["grpo/loss"] == [(step, 10.0 - step) for step in range(5)]
    assert found["grpo/valid/recall@3"] == [(0, 0.0), (2, 0.25), (4, 0.5)]
    assert [step for step, _ in scalars(tmp_path / "run" / "tensorboard" / "sft")["sft/loss"]] == [1, 2, 3, 4, 5, 6]


def test_a_stage_of_which_nothing_was_saved_begins_anew(tmp_path: Path) -> None:
    config = config_for("tensorboard")
    run = RunFolder.create(tmp_path / "run", config)
    for last in (5, 3):
        run.forget_metrics_after(0)
        with run.tracked(config) as tracked:
            train(tracked, "sft", 1, last, begin=None)
    folder = run.path / "tensorboard" / "sft"
    assert [step for step, _ in scalars(folder)["sft/loss"]] == [1, 2, 3]
    assert [event.step for event in read_events(folder).Tensors("config/text_summary")] == [0]


def test_an_evaluation_that_was_shown_and_lost_is_shown_once_when_it_is_done_again(tmp_path: Path) -> None:
    """A signal cut it short and the step was saved without it; done again, it was killed before it was saved."""
    config = config_for("tensorboard")
    run = RunFolder.create(tmp_path / "run", config)
    with run.tracked(config) as tracked:
        train(tracked, "sft", 1, 1, begin=None)
        tracked.log(line("sft", 2, loss=8.0))
        size = run.metrics_size
    for _ in range(3):
        run.forget_metrics_after(size)
        with run.tracked(config) as tracked:
            tracked.tracking.begin("sft", 2)
            tracked.log(line("sft", 2, valid={"recall@3": 0.25}))
    found = scalars(run.path / "tensorboard" / "sft")
    assert found["sft/loss"] == [(1, 9.0), (2, 8.0)]
    assert found["sft/valid/recall@3"] == [(2, 0.25)]


def test_results_are_shown_once_at_the_last_step_however_often_and_late_they_come(tmp_path: Path) -> None:
    config = config_for("tensorboard")
    run = RunFolder.create(tmp_path / "run", config)
    with run.tracked(config) as tracked:
        train(tracked, "sft", 1, 4, begin=None)
    folder = run.path / "tensorboard" / "sft"
    for _ in range(3):
        with run.tracked(config) as tracked:
            tracked.tracking.add_results("sft", RESULTS)
        found = scalars(folder)
        assert found["sft/results/valid/recall@3"] == [(4, 0.25)] and found["sft/results/test/recall@3"] == [(4, 0.5)]
        assert len(found["sft/loss"]) == 4
        (path,) = folder.glob("*.results")
        os.truncate(path, path.stat().st_size - 3)  # as after a crash in it
        assert "sft/results/test/recall@3" not in scalars(folder)


@pytest.mark.parametrize("number", range(6, 10))
def test_files_of_one_second_are_read_in_the_order_in_which_they_were_begun(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard numbers its files in a process, and takes them up by name: 10 before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(number))
    config = config_for("tensorboard")
    run = RunFolder.create(tmp_path / "run", config)
    with run.tracked(config) as tracked:
        train(tracked, "sft", 1, 4, begin=None)
    run.forget_metrics_after(0)
    with run.tracked(config) as tracked:
        train(tracked, "sft", 1, 2, begin=None)
        tracked.tracking.add_results("sft", RESULTS)
    found = scalars(run.path / "tensorboard" / "sft")
    assert found["sft/loss"] == [(1, 9.0), (2, 8.0)]
    assert found["sft/results/test/recall@3"] == [(2, 0.5)]


def test_a_clock_that_was_set_back_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(tracking.time, "sleep", waited.append)
    config = config_for("tensorboard")
    run = RunFolder.create(tmp_path / "run", config)
    with run.tracked(config) as tracked:
        train(tracked, "sft", 1, 2, begin=None)
    folder = run.path / "tensorboard" / "sft"
    for path in folder.iterdir():
        path.rename(folder / path.name.replace("events.out.tfevents.1", "events.out.tfevents.9"))
    with run.tracked(config) as tracked:
        train(tracked, "sft", 3, 4, begin=2)
    assert waited == [1.0]


class Recorder(GeneralTracker):
    """A tracker that keeps what it is given, in a list that outlives it as a service would."""

    name = "recorder"
    requires_logging_directory = False
    tracker = None

    def __init__(self, kept: list[Any]) -> None:
        super().__init__()
        self.kept = kept

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        assert values["grpo/tawin/anchor"] == 2.0

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.kept.append((step, values))


def test_a_service_gets_no_line_twice_however_often_the_run_is_stopped(tmp_path: Path) -> None:
    config = config_for("trackio")
    run = RunFolder.create(tmp_path / "run", config)
    kept: list[Any] = []
    identities = []

    def resume(first: int, last: int, size: int, begin: int | None) -> RunFolder:
        run.forget_metrics_after(size)
        service = Service(run.path, config, lambda identity: identities.append(identity) or Recorder(kept))
        tracked = dataclasses.replace(run, tracking=service)
        train(tracked, "sft", first, last, begin=begin)
        return tracked

    resume(1, 2, 0, None)
    size = run.metrics_size
    resume(3, 6, size, 2)
    resume(3, 4, size, 2)  # stopped again before it came as far as the first time
    for _ in range(2):  # the second time nothing is left to do but to say what came of it
        resume(3, 8, size, 2).tracking.add_results("sft", RESULTS)
    assert len(set(identities)) == 1
    assert [step for step, values in kept if "sft/loss" in values] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [step for step, values in kept if "sft/valid/recall@3" in values] == [2, 4, 6, 8]
    results = (None, {"sft/results/valid/recall@3": 0.25, "sft/results/test/recall@3": 0.5})
    assert kept[-1] == results and kept.count(results) == 1
    assert kept[0] == (1, {"sft/seconds": 0.5, "sft/loss": 9.0})


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_that_is_not_installed_is_refused_with_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tawin.run.tracking.importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=f"tracking.to: '{name}' needs {name}: pip install {name}"):
        require_tracker(TrackingConfig(to=name))  # type: ignore[arg-type]
    require_tracker(TrackingConfig())
    require_tracker(TrackingConfig(to="none"))


def test_without_tensorboard_one_line_says_so_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tawin.run.tracking.importlib.util.find_spec", lambda _name: None)
    assert start_tracking(tmp_path, Config()) is NOT_TRACKED
    assert capsys.readouterr().out.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("to", "writes"), [("none", True), ("tensorboard", False)])
def test_none_and_all_processes_but_the_first_track_nothing(tmp_path: Path, to: str, writes: bool) -> None:
    config = config_for(to)
    RunFolder.create(tmp_path / "run", config)
    with RunFolder(tmp_path / "run", writes=writes).tracked(config) as run:
        train(run, "sft", 1, 2, begin=None)
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_run_that_fails_says_so_and_its_error_gets_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []

    class Told(tracking.Tracking):
        def finish(self, *, failed: bool) -> None:
            ends.append(failed)

    monkeypatch.setattr("tawin.run.folder.start_tracking", lambda *_: Told())
    run = RunFolder.create(tmp_path / "run", Config())
    with run.tracked(Config()):
        pass
    with pytest.raises(KeyboardInterrupt), run.tracked(Config()):
        raise KeyboardInterrupt
    assert ends == [False, True]


def test_only_numbers_are_shown_and_nested_ones_by_their_path() -> None:
    assert flat({"a": {"b": {"c": 1}}, "d": None}) == {"a/b/c": 1, "d": None}
    assert numbers(line("grpo", 2, note="x", valid={"recall@1": 0.5})) == {
        "grpo/seconds": 1.0,
        "grpo/valid/recall@1": 0.5,
    }
    alarm = {"stage": "grpo", "step": 2, "alarm": "kl", "value": 12.0, "limit": 10.0}  # of the watchdog
    assert numbers(alarm) == {"grpo/alarm/kl/value": 12.0, "grpo/alarm/kl/limit": 10.0}


def test_tracking_is_no_part_of_the_experiment(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a", Config())
    RunFolder.resume(run.path, config_for("none"))  # may differ when a run goes on
    assert load_yaml(run.path / "config.yaml").tracking.to == "tensorboard"
    other = RunFolder.create(tmp_path / "b", dataclasses.replace(config_for("none"), seed=1))
    assert len(read_runs([run.path, other.path])) == 1


@pytest.mark.parametrize("values", [{"to": "mlflow"}, {"project": " "}, {"project": "../outside"}])
def test_options_that_mean_nothing_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"tracking.{next(iter(values))}: expected"):
        TrackingConfig(**values)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_real_service_takes_a_run_that_is_stopped_and_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    config = config_for(name)
    run = RunFolder.create(tmp_path / "run", config)
    with run.tracked(config) as tracked:
        train(tracked, "sft", 1, 4, begin=None)
    identity = json.loads((run.path / "tracking.json").read_text())["id"]
    with run.tracked(config) as tracked:
        train(tracked, "grpo", 0, 2, begin=None)
        tracked.tracking.add_results("grpo", RESULTS)
    assert json.loads((run.path / "tracking.json").read_text()) == {
        "to": name,
        "id": identity,
        "lines": 11,
        "results": ["grpo"],
    }
    folder = run.path / "wandb" if name == "wandb" else tmp_path / "trackio"
    assert any(path.suffix in (".wandb", ".db") and path.stat().st_size > 0 for path in folder.rglob("*"))
