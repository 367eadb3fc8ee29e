"""Options that are none any more: old files load, what makes a difference is said, and a successor is named."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tawin.cli.options import parse_training
from tawin.config import Config, TrackingConfig
from tawin.config.files import differences, load_yaml
from tawin.config.retired import RETIRED, set_otherwise, without_retired
from tawin.run.folder import RunFolder, RunFolderError


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """A mapping as in the YAML of options by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        inner = found
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return found


def run_with(folder: Path, **options: Any) -> RunFolder:
    """A run of an earlier release, whose config.yaml has these options too."""
    run = RunFolder.create(folder, Config())
    values = yaml.safe_load((folder / "config.yaml").read_text())
    for name, value in options.items():
        section, option = name.split("__")
        values[section][option] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return run


def test_a_config_that_names_all_of_them_as_they_are_now_is_read_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    values = nested({name: option.now for name, option in RETIRED.items()})
    path.write_text(yaml.safe_dump(values))
    assert load_yaml(path) == Config()
    assert capsys.readouterr().err == ""
    assert not list(set_otherwise(values))
    assert not any(without_retired(values)[name] for name in values if name != "grpo")


@pytest.mark.parametrize("name", RETIRED)
def test_another_value_is_said_with_what_to_set_instead(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    values = nested({"seed": 7, name: "other"})
    path.write_text(yaml.safe_dump(values))
    assert [one[0] for one in differences(Config(), load_yaml(path))] == ["seed"]
    said = capsys.readouterr().err
    assert f"{path}: {name} is no option any more: 'other' is taken for" in said and RETIRED[name].instead in said
    assert list(set_otherwise(values)) == [(name, "other", RETIRED[name].now)]
    assert without_retired(values) == values


@pytest.mark.parametrize("option", ["--grpo.max-grad-norm=2", "--grpo.max_grad_norm=2", "--grpo.max-grad-norm"])
def test_a_command_that_sets_one_is_refused_with_its_successor(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_training(["--out", "RUN", option])
    said = capsys.readouterr().err
    assert "--grpo.max_grad_norm: no option any more, it is always 1.0; a lower learning_rate" in said


def test_what_is_named_instead_exists() -> None:
    def exists(name: str) -> bool:
        value: Any = Config()
        for part in name.split("."):
            value = getattr(value, part, None)
        return value is not None and name not in RETIRED

    named = [name for option in RETIRED.values() for name in re.findall(r"\b\w+(?:\.\w+)+", option.instead)]
    assert named and all(map(exists, named))
    assert not any(map(exists, RETIRED))


def test_an_old_run_goes_on_where_its_training_stays_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(Config(), tracking=TrackingConfig(to="none"))
    run_with(tmp_path / "same", grpo__max_grad_norm=1.0, watchdog__window=7)
    assert RunFolder.resume(tmp_path / "same", config).config == Config()
    assert "watchdog.window is no option any more: 7 is taken for 20" in capsys.readouterr().err
    run_with(tmp_path / "other", grpo__max_grad_norm=2.0)
    with pytest.raises(RunFolderError, match=r"with another config: grpo.max_grad_norm was 2.0, is now 1.0"):
        RunFolder.resume(tmp_path / "other", config)
