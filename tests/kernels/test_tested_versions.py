"""One line when the kernels are imported next to a torch or triton that no test has run with."""

from __future__ import annotations

import subprocess
import sys

import pytest
import tawin_kernels

import tawin


def stderr_of(code: str) -> list[str]:
    """What a program says that imports torch and triton first, with `sys.path` as here."""
    code = f"import sys; sys.path[:0] = {sys.path!r}\nimport torch, triton\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.splitlines()


@pytest.mark.parametrize("version", ["2.13.0+cpu", "2.14.1+cu130", "2.14.0a0+git1"])
def test_a_torch_that_is_tested_gives_no_warning(version: str) -> None:
    assert stderr_of(f"torch.__version__ = {version!r}; triton.__version__ = '3.9.0'; import tawin_kernels") == []


@pytest.mark.parametrize("version", ["2.11.0", "2.15.0", "3.0.0"])
def test_another_torch_is_named_once_in_one_line(version: str) -> None:
    code = f"torch.__version__ = {version!r}; triton.__version__ = '3.6.0'"
    (line,) = stderr_of(f"{code}; import tawin, tawin_kernels; tawin.beam_search; import tawin.search.completions")
    assert line == (
        f"tawin_kernels:1: RuntimeWarning: not tested with torch {version} (tested: 2.13 to 2.14); run its tests "
        "before you rely on results"
    )


def test_torch_and_triton_share_the_line() -> None:
    (line,) = stderr_of("torch.__version__ = '2.15.0'; triton.__version__ = '3.10.0'; import tawin_kernels")
    assert "torch 2.15.0 (tested: 2.13 to 2.14) and triton 3.10.0 (tested: 3.6 to 3.9)" in line


def test_both_packages_have_one_version() -> None:
    assert tawin_kernels.__version__ == tawin.__version__
