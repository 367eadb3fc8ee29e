"""bench.compile_report and what it is made of, on kernels of the package and on kernels with a known fault.

The kernels here are decorated while TRITON_INTERPRET is not set, so they are compiled; those of the package are made
for the interpreter in this process, so the report itself runs in another one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from tawin_kernels.launch import Launch

from bench.compile_report import TARGETS, row_of
from bench.compiled_code import Code, Job, compiled, job_of

ROOT = Path(__file__).parents[2]


@triton.jit
def product_kernel(
    left_ptr,
    right_ptr,
    out_ptr,
    n,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    m, columns, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    products = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for start in range(0, n, BLOCK_K):
        left = tl.load(left_ptr + m[:, None] * n + start + k[None, :])
        right = tl.load(right_ptr + columns[None, :] * n + start + k[:, None])
        products = tl.dot(left, right, products, input_precision=PRECISION)
    tl.store(out_ptr + m[:, None] * BLOCK_N + columns[None, :], products)


@triton.jit
def broken_kernel(out_ptr, BLOCK_N: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, BLOCK_N), tl.load(out_ptr + tl.arange(0, 2 * BLOCK_N)))


def product_job(target: str, dtype: torch.dtype, blocks: tuple[int, int, int], warps: int = 4, **changes: Any) -> Job:
    def empty(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    arguments = {
        "left_ptr": empty(128, 512),
        "right_ptr": empty(128, 512),
        "out_ptr": torch.empty(blocks[0], blocks[1], device="meta"),
        "n": 512,
        "BLOCK_M": blocks[0],
        "BLOCK_N": blocks[1],
        "BLOCK_K": blocks[2],
        "PRECISION": "ieee",
    }
    return job_of(Launch(product_kernel, (1,), {**arguments, **changes}, warps, 2), TARGETS[target])


def compiled_product(*arguments: Any, **changes: Any) -> Code:
    return compiled(product_job(*arguments, **changes))


def test_arguments_are_specialised_as_the_jit_does() -> None:
    job = product_job("sm_90", torch.bfloat16, (64, 64, 64), n=512)
    assert job.source.signature["left_ptr"] == "*bf16"
    assert job.source.signature["n"] == "i32"
    assert job.source.attrs[(0,)] == job.source.attrs[(3,)] == [["tt.divisibility", 16]]

    odd = product_job("sm_90", torch.bfloat16, (64, 64, 64), n=513)
    assert not odd.source.attrs.get((3,))
    assert product_job("sm_90", torch.bfloat16, (64, 64, 64), n=2**40).source.signature["n"] == "i64"
    one = product_job("sm_90", torch.bfloat16, (64, 64, 64), n=1)
    assert one.source.signature["n"] == "constexpr"
    assert one.source.constants[(3,)] == 1
    assert len({job.key, odd.key, one.key}) == 3
    assert product_job("sm_90", torch.bfloat16, (64, 64, 64), n=1024).key == job.key


@pytest.mark.parametrize(
    ("target", "rows", "instruction"),
    [
        ("sm_80", 64, "HMMA"),
        ("sm_90", 64, "HGMMA"),
        ("sm_90", 16, "HMMA"),
        ("sm_100", 128, "UTCHMMA"),
        ("gfx942", 64, "v_mfma"),
    ],
)
def test_a_product_of_16_bit_matrices_uses_the_tensor_cores_of_its_target(
    target: str, rows: int, instruction: str
) -> None:
    code = compiled_product(target, torch.bfloat16, (rows, 64, 64))
    assert code.failures == ()
    assert [dot.dtype for dot in code.dots] == ["bf16"]
    assert any(name.startswith(instruction) and count > 0 for name, count in code.matrix_instructions.items())
    assert code.registers > 0


@pytest.mark.parametrize("target", TARGETS)
def test_a_product_of_fp32_matrices_is_not_rounded(target: str) -> None:
    assert compiled_product(target, torch.float32, (32, 32, 32)).failures == ()


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_a_product_in_tf32_is_a_failure(target: str) -> None:
    (failure,) = compiled_product(target, torch.float32, (64, 64, 32), PRECISION="tf32").failures
    assert "fp32" in failure


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_a_tile_too_large_for_the_registers_is_a_failure(target: str) -> None:
    code = compiled_product(target, torch.bfloat16, (256, 256, 16), 4 if target == "sm_80" else 1)
    assert code.spills > 0
    assert code.local_memory > 0
    assert any(failure.startswith("spills") for failure in code.failures)


def test_more_shared_memory_than_there_is_is_a_failure() -> None:
    code = compiled_product("sm_80", torch.float16, (128, 128, 512), 8)
    assert code.shared_memory > TARGETS["sm_80"].shared_memory
    assert any("shared memory" in failure for failure in code.failures)


def test_a_kernel_that_does_not_compile_is_a_failure_with_its_reason(capfd: pytest.CaptureFixture[str]) -> None:
    out = torch.empty(16, device="meta")
    job = job_of(Launch(broken_kernel, (1,), {"out_ptr": out, "BLOCK_N": 16}, 4, 2), TARGETS["sm_90"])
    row = row_of("sm_90", job, ("a case",))
    assert row.code is None
    assert row.failures[0].startswith("does not compile: ")
    assert row.as_json()["kernel"] == "broken_kernel"
    capfd.readouterr()


def report(*arguments: str, interpret: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "bench.compile_report", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_report_names_every_kernel_that_it_was_asked_for_and_what_it_takes(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    result = report("--targets", "sm_90", "--kernels", "live_rows", "--json", str(path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 kernels on 1 targets: nothing to complain about" in result.stdout
    figures = json.loads(path.read_text())
    (row,) = figures["rows"]
    assert (row["target"], row["kernel"], row["blocks"]) == ("sm_90", "live_rows_kernel", "1024, 4 warps, 2 stages")
    assert row["code"]["registers"] > 0
    assert row["cases"]
    assert figures["failures"] == []


UNLAUNCHED = """
import sys
import triton
import tawin_kernels.launch
@triton.jit
def forgotten_kernel(out_ptr):
    pass
tawin_kernels.launch.forgotten_kernel = forgotten_kernel
from bench.compile_report import main
sys.exit(main(["--targets", "gfx942", "--kernels", "forgotten"]))
"""


def test_a_kernel_of_the_package_in_no_case_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "forgetful.py"  # the source of a kernel is read from its file
    path.write_text(UNLAUNCHED)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    result = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "gfx942: forgotten_kernel: no case launches it" in result.stdout


def test_nothing_is_compiled_for_the_interpreter() -> None:
    result = report(interpret=True)
    assert result.returncode == 2
    assert "TRITON_INTERPRET" in result.stdout


@pytest.mark.parametrize("arguments", [("--targets", "sm_90,sm_12345"), ("--kernels", "no_such_kernel")])
def test_a_target_or_kernel_that_does_not_exist_is_refused(arguments: tuple[str, str]) -> None:
    result = report(*arguments)
    assert result.returncode == 2
    assert arguments[0] in result.stderr
