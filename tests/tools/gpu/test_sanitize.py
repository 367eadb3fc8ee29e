"""tools.gpu.sanitize without a GPU: its command, what it reads out of a tool's words, its failures and refusals."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
import torch

from tools.gpu import sanitize

# As NVIDIA's manual has them.
MEMCHECK = """
========= COMPUTE-SANITIZER
........s                                                    [100%]
8 passed, 1 skipped in 61.02s (0:01:01)
========= ERROR SUMMARY: 2 errors
"""
RACECHECK = """
========= COMPUTE-SANITIZER
=================== 3 passed in 7.50s ===================
========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)
"""


def test_errors_and_tests_are_read_from_what_a_tool_says() -> None:
    assert sanitize.read_summary(MEMCHECK) == {"errors": 2, "tests": "8 passed, 1 skipped in 61.02s (0:01:01)"}
    assert sanitize.read_summary(RACECHECK) == {"errors": 0, "tests": "3 passed in 7.50s"}
    assert sanitize.read_summary("killed") == {"errors": None, "tests": None}


def stand_in(folder: Path, summary: str) -> str:
    """A program that takes the tool's options, runs what follows them, and ends with the summary."""
    path = folder / "compute-sanitizer"
    skip_options = f'while [ "$1" != "{sys.executable}" ]; do shift; done'
    path.write_text(f'#!/bin/sh\n{skip_options}\n"$@"\necho "{summary}"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("summary", "passed"),
    [
        ("========= ERROR SUMMARY: 0 errors", True),
        ("========= ERROR SUMMARY: 1 error", False),
        ("nothing of the kind", False),
    ],
)
def test_a_tool_passes_only_where_it_says_so_and_the_tests_pass(summary: str, passed: bool, tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(
        "import os\ndef test_one():\n    assert os.environ['TAWIN_GUARDED_MEMORY'] == '0'\n"
    )
    result = sanitize.run_tool(stand_in(tmp_path, summary), "memcheck", [str(tmp_path / "test_one.py")], 120.0)
    assert result["tests"].startswith("1 passed")
    assert result["passed"] == passed


def test_a_failing_test_is_no_pass(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("def test_one():\n    assert False\n")
    sanitizer = stand_in(tmp_path, "========= ERROR SUMMARY: 0 errors")
    assert not sanitize.run_tool(sanitizer, "racecheck", [str(tmp_path / "test_one.py")], 120.0)["passed"]


def test_a_machine_without_the_sanitizer_says_that_nothing_was_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    result = sanitize.run_tools(["memcheck"], ["tests/kernels"], 1.0)
    assert result == {"passed": False, "summary": "compute-sanitizer was not found: not run"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        sanitize.main(["--minutes", "0"])
