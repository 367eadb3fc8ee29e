"""How preset, YAML, command line and a resumed run's config come together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tawin.cli.options import parse_training
from tawin.config.presets import PRESETS
from tawin.run.folder import RunFolder


def test_without_options_the_demo_runs_into_a_folder_of_its_own() -> None:
    options = parse_training([])
    assert options.config == PRESETS["demo"]
    assert options.out.parent == Path("runs") and options.out.name.startswith("demo-")
    assert not options.resume


def test_the_yaml_beats_the_preset_and_the_command_line_beats_both(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 5\ngrpo:\n  group_size: 8\n  tawin:\n    anchor: 4\n")
    options = parse_training(
        ["--preset", "cpu-small", "--config", str(path), "--grpo.group-size", "32", "--data", "D", "--out", "R"]
    )
    preset = PRESETS["cpu-small"]
    tawin = dataclasses.replace(preset.grpo.tawin, anchor=4.0)
    grpo = dataclasses.replace(preset.grpo, group_size=32, tawin=tawin)
    assert options.config == dataclasses.replace(preset, seed=5, data="D", grpo=grpo)
    assert options.out == Path("R")


def test_a_resumed_run_takes_its_own_config(tmp_path: Path) -> None:
    config = dataclasses.replace(PRESETS["cpu-small"], seed=9)
    RunFolder.create(tmp_path, config)
    assert parse_training(["--out", str(tmp_path), "--resume"]).config == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "--resume: expected --out"),
        (["--resume", "--out", "no/such/run"], "no/such/run: expected a run folder"),
        (["--config", "absent.yaml"], "absent.yaml: no such file"),
        (["--preset", "huge"], "--preset"),
    ],
)
def test_what_cannot_be_parsed_is_refused_by_name(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_training(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
