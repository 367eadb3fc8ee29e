"""How preset, YAML, command line and a resumed run's config come together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tawin.cli.options import parse_training
from tawin.config.presets import PRESETS
from tawin.run.folder import RunFolder

from ..runs import make_run


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


def test_a_pretrained_model_without_a_preset_gets_one_for_pretrained_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = "paper" if torch.cuda.is_available() else "cpu-pretrained"
    options = parse_training(["--model", "some/model"])
    assert options.config == dataclasses.replace(PRESETS[expected], model="some/model")
    assert options.out.name.startswith(expected) and f"preset: {expected}" in capsys.readouterr().err
    path = tmp_path / "mine.yaml"
    path.write_text("model: some/model\n")
    assert parse_training(["--config", str(path)]).config == options.config
    assert parse_training(["--preset", "demo", "--model", "some/model"]).config.sft == PRESETS["demo"].sft


def test_a_model_of_a_run_goes_on_with_the_settings_of_the_small_decoder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    options = parse_training(["--model", str(run.checkpoints / "sft")])
    assert options.config.sft == PRESETS["demo"].sft
