"""`tawin` as a program: how it begins, and how Ctrl-C ends it."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tawin import cli
from tawin.cli import evaluate, export, prepare, recommend, report
from tawin.cli.train import ending_with_a_message
from tawin.run.folder import RunFolder
from tawin.run.processes import ALONE

INTERRUPTED_AT_AN_IMPORT = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
from tawin.__main__ import main
main(["report", "RUN"])
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


def test_the_package_is_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["prepare", "--help"])
    assert "usage: tawin prepare" in capsys.readouterr().out
    refused = run("-m", "tawin", "report", "no/such/run")
    assert refused.returncode == 1 and "no/such/run: expected a run folder" in refused.stderr


@pytest.mark.parametrize("module", ["torch", "transformers"])
def test_ctrl_c_during_the_imports_ends_with_one_line_and_status_130(module: str) -> None:
    ended = run("-c", INTERRUPTED_AT_AN_IMPORT, module)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


def test_a_program_that_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + INTERRUPTED_AT_AN_IMPORT
    ended = run("-c", code, "torch")
    assert ended.returncode == 1 and "RUN: expected a run folder" in ended.stderr


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        (prepare, "prepare", ["prepare", "csv", "log.csv", "DATA"]),
        (evaluate, "RunFolder", ["evaluate", "RUN"]),
        (recommend, "load_serving", ["recommend", "RUN", "--history", "1,2"]),
        (export, "RunFolder", ["export", "RUN", "FOLDER"]),
        (report, "write_report", ["report", "RUN"]),
    ],
)
def test_ctrl_c_in_every_command_ends_with_one_line_and_status_130(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: ModuleType,
    name: str,
    arguments: list[str],
) -> None:
    class Interrupts:
        """A signal, as a terminal sends it, where the command begins its work."""

        def __call__(self, *_: Any, **__: Any) -> None:
            signal.raise_signal(signal.SIGINT)

        open = __call__

    monkeypatch.setattr(module, name, Interrupts())
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 130
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "interrupted\n")


def test_ctrl_c_leaves_nothing_of_a_data_folder_that_was_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,item,time\n" + "".join(f"1,{n},{1_700_000_000 + n}\n" for n in range(9)))
    monkeypatch.setattr("tawin.prepare.write.sync_file", lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as caught:
        cli.main(["prepare", "csv", str(log), str(tmp_path / "DATA"), "--min-interactions", "0"])
    assert caught.value.code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_the_command_that_goes_on_with_a_run_is_one_that_a_shell_takes(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "it's my run")
    with pytest.raises(SystemExit) as caught, ending_with_a_message(run, ALONE):
        raise OSError("the disk is gone")
    words = shlex.split(str(caught.value.code).partition("go on with: ")[2])
    assert words == ["tawin", "train", "--out", str(run.path), "--resume"]
