"""Sizes that vary from step to step add no compilations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_no_kernel_has_more_compilations_than_choices_of_constants() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", "tools.compiled.late_compilations"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    # Few rows, some and many are three choices of tiles; every kernel of the backward pass is among them.
    assert "3 compilations,   3 choices" in lines["gradient_slab_kernel"]
    assert {"vocabulary_kernel", "live_rows_kernel", "segment_sum_kernel", "group_loss_kernel"} <= lines.keys()
