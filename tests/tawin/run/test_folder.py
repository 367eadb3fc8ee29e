"""A run folder is never overwritten and never half written."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from tawin.config import CheckpointConfig, GRPOConfig
from tawin.config.presets import PRESETS
from tawin.run.atomic import WriteError
from tawin.run.folder import RunFolder, RunFolderError
from tawin.run.lock import lock_run

CONFIG = PRESETS["demo"]


def test_a_new_run_keeps_its_config(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a" / "run", CONFIG)
    assert RunFolder.open(run.path).config == CONFIG
    assert run.checkpoints.is_dir()


def test_an_empty_folder_is_fine(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, CONFIG)
    assert (tmp_path / "config.yaml").exists()


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, CONFIG)
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(RunFolderError, match="holds another run; pass --resume"):
        RunFolder.create(tmp_path, CONFIG)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_a_folder_with_somebodys_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="other files"):
        RunFolder.create(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(RunFolderError, match="expected a folder, got a file"):
        RunFolder.create(tmp_path / "out", CONFIG)


def test_a_resume_with_another_config_names_the_fields(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, CONFIG)
    changed = dataclasses.replace(CONFIG, seed=3, grpo=GRPOConfig(group_size=4))
    with pytest.raises(RunFolderError, match=r"seed was 0, is now 3; .*grpo\.group_size was 16, is now 4"):
        RunFolder.resume(tmp_path, changed)
    assert RunFolder.resume(tmp_path, CONFIG).path == tmp_path


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"config\.yaml"):
        RunFolder.open(tmp_path)


def test_results_grow_part_by_part(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, CONFIG)
    run.add_results(sft={"test": 1})
    run.add_results(grpo={"test": 2})
    assert json.loads((tmp_path / "results.json").read_text()) == {"sft": {"test": 1}, "grpo": {"test": 2}}
    assert not list(tmp_path.glob(".*"))


def test_a_process_that_does_not_write_reads_what_another_wrote(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, CONFIG)
    run.log({"step": 1})
    run.add_results(sft=1)
    other = RunFolder(tmp_path, writes=False)
    other.log({"step": 2})
    other.forget_metrics_after(0)
    assert other.add_results(sft=2) == run.results == {"sft": 1}
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_what_a_crash_leaves_does_not_keep_a_new_run_out(tmp_path: Path) -> None:
    for name in (".lock", ".config.yaml.writing"):
        (tmp_path / name).touch()
    RunFolder.create(tmp_path, CONFIG)


def test_a_run_in_use_is_refused_by_the_name_of_its_holder(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, CONFIG)
    with lock_run(tmp_path), pytest.raises(RunFolderError, match=rf"process {os.getpid()} on .* trains in this folder"):
        RunFolder.check_new(tmp_path)


def test_what_a_crash_has_left_half_written_is_removed_when_the_run_goes_on(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, CONFIG)
    (tmp_path / ".results.json.writing").touch()
    for parent, name in ((run.path, ".catalog.writing"), (run.checkpoints, ".sft.writing")):
        (parent / name).mkdir()
    RunFolder.resume(tmp_path, CONFIG)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoints", "config.yaml"]


def test_how_often_states_are_saved_may_change_when_the_run_goes_on(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, CONFIG)
    RunFolder.resume(tmp_path, dataclasses.replace(CONFIG, checkpoints=CheckpointConfig(keep=1, save_every=7)))


def test_the_digest_is_of_the_options_not_of_how_they_are_written(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, CONFIG)
    digest, path = run.config_digest, tmp_path / "config.yaml"
    path.write_text("# mine\n" + path.read_text() + "\n")
    assert run.config_digest == digest
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    assert run.config_digest != digest


def test_metrics_that_have_lost_lines_are_kept_to_their_last_whole_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder.create(tmp_path, CONFIG)
    run.log({"step": 1})
    run.log({"step": 2})
    size = run.metrics_size
    os.truncate(tmp_path / "metrics.jsonl", size - 3)
    run.forget_metrics_after(size)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert "lines are missing in it" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").unlink()
    run.forget_metrics_after(size)
    assert run.metrics_size == 0


def test_a_line_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(WriteError, match=r"metrics\.jsonl: could not be written"):
        run.log({"step": 1})


def test_metrics_behind_a_checkpoint_are_forgotten(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, CONFIG)
    run.log({"step": 1})
    size = run.metrics_size
    run.log({"step": 2})
    run.forget_metrics_after(size)
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [{"step": 1}]
