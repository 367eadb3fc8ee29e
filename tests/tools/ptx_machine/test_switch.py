"""pytest --compiled: kernels' tests run as compiled, few examples each, bf16 among the dtypes; and its commands."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tools.ptx_machine.count import Counter
from tools.ptx_machine.mutate import KINDS, mutants_of

from .snippets import run_ptx

ROOT = Path(__file__).parents[3]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_tests_of_kernels_run_as_compiled_and_others_are_left_out():
    files = ["tests/kernels/ops/log_prob/test_gradient_sums.py", "tests/kernels/test_types.py"]
    result = run(
        "pytest", *files, "--compiled", "sm_90", "-p", "no:cacheprovider", "-v", "--hypothesis-show-statistics"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"\d+ passed, .*\d+ deselected", result.stdout)
    assert "test_records" not in re.sub(r".*deselected.*", "", result.stdout)
    examples = [int(count) for count in re.findall(r"(\d+) passing examples", result.stdout)]
    assert max(examples, default=0) <= 3


def test_bf16_is_among_the_dtypes():
    script = "from tools.ptx_machine.switch import switch_on; switch_on('sm_80'); "
    script += "from tests.kernels.devices import KERNEL_DTYPES; print(KERNEL_DTYPES)"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert "torch.bfloat16" in result.stdout, result.stderr


def test_a_target_that_is_not_known_is_refused():
    result = run(
        "pytest", "tests/kernels/ops/log_prob/test_gradient_sums.py", "--compiled", "sm_70", "-p", "no:cacheprovider"
    )
    assert result.returncode != 0
    assert "target: expected one of sm_80, sm_90, sm_100, got 'sm_70'" in result.stdout + result.stderr


def test_what_kernels_do_is_counted():
    result = run("tools.ptx_machine.count", "--cases", "15 head")
    assert result.returncode == 0, result.stderr
    rows = {cells[2].strip(): cells for line in result.stdout.splitlines() if len(cells := line.split("|")) > 3}
    loaded, matrix = float(rows["vocabulary"][3]), float(rows["vocabulary"][5])
    assert 2048 * 256 * 2 / 1e6 <= loaded <= 1.5 * 2048 * 256 * 2 / 1e6  # the weight once, a few rows of states
    assert matrix == 32 * 256 / 16 / 128  # products of 16 x 8 x 16 by 32 threads each


BODY = """
  .reg .b32 %at, %value;
  .reg .b64 %from;
  mul.lo.s32 %at, %tid, STEP;
  ld.shared.vTYPE [%at];
  mad.lo.s64 %from, %rdtid, 64, %rd_x;
  ld.global.b32 %value, [%from];
"""


@pytest.mark.parametrize(("step", "goes"), [(4, 1), (0, 1), (8, 2), (128, 32), (132, 1)])
def test_bank_conflicts_and_sectors_are_counted(step, goes):
    body = BODY.replace("STEP", str(step)).replace("ld.shared.vTYPE", "ld.shared.b32 %value,")
    counter = Counter()
    run_ptx(body, {"x": np.zeros(512, np.uint32)}, shared=8192, observer=counter)
    totals = counter.kernels["snippet"]
    assert (totals.shared, totals.shared + totals.waits) == (1, goes)
    assert totals.loaded == 32 * 32  # a sector for each thread


def test_wide_accesses_go_by_128_bytes():
    body = BODY.replace("STEP", "16").replace("ld.shared.vTYPE", "ld.shared.v4.b32 {%value, _, _, _},")
    counter = Counter()
    run_ptx(body, {"x": np.zeros(512, np.uint32)}, shared=8192, observer=counter)
    assert (counter.kernels["snippet"].shared, counter.kernels["snippet"].waits) == (4, 0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_kind_of_fault_changes_one_line(kind):
    lines = {
        "barrier removed": "bar.sync 0;",
        "one group too few awaited": "cp.async.wait_group 0x2;",
        "mask of a global access dropped": "@%p4 ld.global.b32 { %r1 }, [ %rd2 + 0 ];",
        "shared address off by 16 bytes": "ld.shared.b32 %r1, [%r2+32];",
        "operands of a product swapped": "mma.sync.x { %r1, %r2 }, { %r3, %r4 };",
        "addition made a subtraction": "add.f32 %r1, %r2, %r3;",
        "constant off by one": "add.s32 %r1, %r2, 64;",
        "comparison inverted": "setp.lt.s32 %p1, %r1, %r2;",
    }
    line = lines[kind.name]
    mutants = mutants_of(f"first\n{line}", {line.rstrip(";")}, 1, random.Random(0))
    assert [(found.name, at) for found, at, _ in mutants] == [(kind.name, 1)]
    assert mutants[0][2] != f"first\n{line}"
    assert mutants_of(f"first\n{line}", set(), 1, random.Random(0)) == []  # which is never run
