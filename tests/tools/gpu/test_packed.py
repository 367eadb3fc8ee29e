"""tools.gpu.packed and tools.gpu.prewarm: what is compiled here is what a GPU machine's Triton looks up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import triton

from tools.gpu.process import run_process


def test_a_packed_kernel_is_found_by_the_jit_of_another_build_of_the_release(tmp_path: Path) -> None:
    result = run_process([sys.executable, "-m", "tests.tools.gpu.packed_kernel", str(tmp_path)], 240.0)
    assert result["status"] == 0, result["output"]
    found = json.loads(result["output"].splitlines()[-1])
    assert found["packed"][0] == 1
    assert found["unpacked"] == [1, ""]
    assert found["hits"] == [True]
    assert found["same"] and found["hash"]
    assert found["other release"] == [0, f"made with triton {triton.__version__}, here is 3.5.0"]
    assert not found["nowhere"]
