"""One line when the kernels are imported next to a torch or triton that no test has run with."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest
import tawin_kernels
import torch
import triton
from tawin_kernels.tested_versions import warn_outside_tested

import tawin


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What is said with a torch and a triton of these versions."""

    def said(torch_version: str, triton_version: str) -> list[str]:
        monkeypatch.setattr(torch, "__version__", torch_version)
        monkeypatch.setattr(triton, "__version__", triton_version)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_outside_tested()
        return [str(warning.message) for warning in caught]

    return said


@pytest.mark.parametrize("version", ["2.13.0+cpu", "2.14.1+cu130", "2.14.0a0+git1", "2.15.0+cu132"])
def test_a_torch_that_is_tested_gives_no_warning(version: str, said: Callable[..., list[str]]) -> None:
    assert said(version, "3.9.0") == []


@pytest.mark.parametrize("version", ["2.11.0", "2.16.0", "3.0.0"])
def test_another_torch_is_named(version: str, said: Callable[..., list[str]]) -> None:
    (line,) = said(version, "3.6.0")
    assert line == f"not tested with torch {version} (tested: 2.13 to 2.15); run its tests before you rely on results"


def test_it_is_said_once_in_one_line() -> None:
    code = "torch.__version__ = '2.16.0'; triton.__version__ = '3.10.0'; import tawin, tawin_kernels; tawin.beam_search"
    script = f"import sys; sys.path[:0] = {sys.path!r}\nimport torch, triton\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [
        "tawin_kernels:1: RuntimeWarning: not tested with torch 2.16.0 (tested: 2.13 to 2.15) and triton 3.10.0 "
        "(tested: 3.6 to 3.9); run its tests before you rely on results"
    ]


def test_both_packages_have_one_version() -> None:
    assert tawin_kernels.__version__ == tawin.__version__
