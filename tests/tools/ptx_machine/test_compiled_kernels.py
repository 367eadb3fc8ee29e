"""Kernels that Triton compiles: matrix products by each target's own instructions, and programs that meet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
INSTRUCTIONS = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}


@pytest.fixture(scope="module", params=list(INSTRUCTIONS))
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What `compiled_kernels` prints for a target."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.tools.ptx_machine.compiled_kernels", request.param]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return {"target": request.param, **json.loads(result.stdout)}


def test_products_are_right_however_the_matrices_lie(found):
    """fp32 sums of 192 products of size one, rounded after every sixteen."""
    for case, product in found["products"].items():
        assert product["error"] < 1e-4, case
        assert product["instructions"] == [INSTRUCTIONS[found["target"]]], case


def test_two_programs_that_store_to_one_address_are_found(found):
    assert found["apart"] == ""
    assert "of out_ptr, which program" in found["overlapping"]
