"""The example of docs/KERNELS.md: a kernel of one's own, run as compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "examples" / "kernel_without_gpu.py"


def test_the_example_runs_from_anywhere_and_finds_the_planted_fault(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    completed = subprocess.run(
        [sys.executable, SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    first, second = completed.stdout.splitlines()
    assert first.startswith("largest error")
    assert "stores to element" in second and "of out_ptr, which program" in second
