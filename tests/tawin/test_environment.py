"""What `tawin` says of what is installed, and where the trainer's dependencies are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tawin
from tawin import cli, environment

ROOT = Path(__file__).resolve().parents[2]

PLAIN_INSTALL = f"""
import sys

sys.path[:0] = {sys.path!r}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"transformers", "pyarrow", "tyro", "rich", "numpy", "accelerate", "trl"}}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""


def in_a_plain_install(code: str) -> subprocess.CompletedProcess[str]:
    """Run with torch and triton alone, as `pip install tawin` leaves it."""
    return subprocess.run([sys.executable, "-c", PLAIN_INSTALL + code], capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train"], ["train", "--help"], ["prepare"], ["recommend", "RUN"], ["no-such-command"]]
)
def test_a_plain_install_names_the_extra_in_one_line(arguments: list[str]) -> None:
    done = in_a_plain_install(f"from tawin.cli import main; main({arguments!r})")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and line.endswith("is not installed: pip install 'tawin[train]'")


def test_the_packages_names_name_the_extra_too() -> None:
    done = in_a_plain_install("import tawin; print(tawin.__version__); tawin.beam_search")
    assert done.stdout == f"{tawin.__version__}\n"
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: tawin.beam_search: ")
    assert last.endswith("is not installed: pip install 'tawin[train]'")


def test_a_plain_install_says_its_version_and_what_it_lacks() -> None:
    done = in_a_plain_install("from tawin.cli import main; main(['--version', '--env'])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"tawin {tawin.__version__}\npython 3.")


def test_a_fault_of_ours_is_no_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"tawin\.no_such_module"), environment.named_extra("train"):
        raise ModuleNotFoundError("No module named 'tawin.no_such_module'", name="tawin.no_such_module")


def test_the_environment_has_versions_gpus_and_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = environment.version

    def without_rich(name: str) -> str:
        if name in ("rich", "tyro"):
            raise environment.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(environment, "version", without_rich)
    cli.main(["--version", "--env"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"tawin {tawin.__version__}"
    assert f"torch {torch.__version__}" in lines
    assert any(line.startswith("triton 3.") for line in lines)
    assert any(line.startswith("GPU") for line in lines)
    assert "missing: rich, tyro: pip install 'tawin[train]'" in lines


def test_the_version_alone_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--version"])
    assert capsys.readouterr().out == f"tawin {tawin.__version__}\n"


def test_the_door_of_a_checkout_is_the_command(tmp_path: Path) -> None:
    door = subprocess.run([sys.executable, ROOT / "train.py", "--out"], cwd=tmp_path, capture_output=True, text=True)
    assert door.returncode == 2
    assert "usage: tawin train" in door.stderr
