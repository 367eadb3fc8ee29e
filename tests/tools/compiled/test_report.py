"""tools.compiled.report and tools.compiled.code, on kernels of the package and on kernels with a known fault.

In this process Triton's interpreter is used and nothing can be compiled, so that is done in others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tools.compiled.code import Code, Dot, failures_of
from tools.compiled.report import TARGETS

from .compiled_products import product_job

ROOT = Path(__file__).parents[3]


def in_a_process(*command: str, interpret: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


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


@pytest.fixture(scope="module")
def products() -> dict[str, Any]:
    """What `compiled_products` prints."""
    result = in_a_process("-m", "tests.tools.compiled.compiled_products")
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("bf16 sm_80", "HMMA"),
        ("bf16 sm_90", "HGMMA"),
        ("bf16 of few rows sm_90", "HMMA"),
        ("bf16 sm_100", "UTCHMMA"),
        ("bf16 gfx942", "v_mfma"),
    ],
)
def test_a_product_of_16_bit_matrices_uses_the_tensor_cores_of_its_target(
    products: dict[str, Any], name: str, instruction: str
) -> None:
    code = products[name]
    assert code["failures"] == []
    assert [dot["dtype"] for dot in code["dots"]] == ["bf16"]
    assert any(found.startswith(instruction) for found in code["matrix_instructions"])
    assert code["registers"] > 0
    assert code["shared_memory"] > 0


def test_16_bit_matrices_without_the_tensor_cores_of_the_target_are_a_failure(products: dict[str, Any]) -> None:
    """No such code comes from Triton at hand, so that of another target is judged."""
    code = products["bf16 sm_80"]
    ampere = Code(**{**code, "dots": tuple(Dot(**dot) for dot in code["dots"])})
    (failure,) = failures_of(ampere, TARGETS["sm_90"])
    assert "without HGMMA" in failure
    (failure,) = failures_of(replace(ampere, matrix_instructions={}), TARGETS["sm_80"])
    assert "without HMMA" in failure


@pytest.mark.parametrize("target", TARGETS)
def test_a_product_of_fp32_matrices_is_not_rounded(products: dict[str, Any], target: str) -> None:
    assert products[f"fp32 {target}"]["failures"] == []
    assert [dot["dtype"] for dot in products[f"fp32 {target}"]["dots"]] == ["f32"]


@pytest.mark.parametrize("target", TARGETS)
def test_a_product_in_tf32_is_a_failure(products: dict[str, Any], target: str) -> None:
    (failure,) = products[f"tf32 {target}"]["failures"]
    assert "round" in failure


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_a_tile_too_large_for_the_registers_is_a_failure(products: dict[str, Any], target: str) -> None:
    code = products[f"spilling {target}"]
    assert code["spills"] > 0
    assert code["local_memory"] > 0
    assert any(failure.startswith("spills") for failure in code["failures"])


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("dtype", ["torch.float32", "torch.float64"])
def test_a_product_that_is_fused_into_the_sum_over_lanes_is_a_failure(
    products: dict[str, Any], dtype: str, target: str
) -> None:
    (failure,) = products[f"contracted {dtype} {target}"]["failures"]
    assert "different bits of one sum" in failure
    assert products[f"not contracted {dtype} {target}"]["failures"] == []
    assert products[f"no products {dtype} {target}"]["failures"] == []


def test_more_shared_memory_than_there_is_is_a_failure(products: dict[str, Any]) -> None:
    code = products["large sm_80"]
    assert code["shared_memory"] > TARGETS["sm_80"].shared_memory
    assert any("shared memory" in failure for failure in code["failures"])


def test_a_kernel_that_does_not_compile_is_a_failure_with_its_reason(products: dict[str, Any]) -> None:
    broken = products["broken"]
    assert (broken["kernel"], broken["code"]) == ("broken_kernel", None)
    assert broken["failures"][0].startswith("does not compile: ")


def report(*arguments: str, interpret: bool = False) -> subprocess.CompletedProcess[str]:
    return in_a_process("-m", "tools.compiled.report", *arguments, interpret=interpret)


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
sys.path.insert(0, "")
@triton.jit
def forgotten_kernel(out_ptr):
    pass
tawin_kernels.launch.forgotten_kernel = forgotten_kernel
from tools.compiled.report import main
sys.exit(main(["--targets", "gfx942", "--kernels", "forgotten"]))
"""


def test_a_kernel_of_the_package_in_no_case_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "forgetful.py"  # the source of a kernel is read from its file
    path.write_text(UNLAUNCHED)
    result = in_a_process(str(path))
    assert result.returncode == 1, result.stdout + result.stderr
    assert "gfx942: forgotten_kernel: no case launches it" in result.stdout


def test_a_float_that_comes_as_fp64_compiles_in_every_kernel() -> None:
    result = in_a_process("-m", "tests.tools.compiled.fp64_scalars")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(found) > 8 and {"vocabulary_kernel", "group_loss_kernel"} <= found.keys()
    assert not {kernel: problem for kernel, problem in found.items() if problem}


def test_nothing_is_compiled_for_the_interpreter() -> None:
    result = report(interpret=True)
    assert result.returncode == 2
    assert "TRITON_INTERPRET" in result.stdout


@pytest.mark.parametrize("arguments", [("--targets", "sm_90,sm_12345"), ("--kernels", "no_such_kernel")])
def test_a_target_or_kernel_that_does_not_exist_is_refused(arguments: tuple[str, str]) -> None:
    result = report(*arguments)
    assert result.returncode == 2
    assert arguments[0] in result.stderr
