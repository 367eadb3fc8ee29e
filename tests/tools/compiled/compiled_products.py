"""Kernels of a matrix product, good ones and ones with a known fault, compiled.

`python -m tests.tools.compiled.compiled_products` prints what tools.compiled.code makes of each, as JSON by name. A
process of its own, as Triton compiles nothing after its interpreter was used.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import torch
import triton
import triton.language as tl
from tawin_kernels.launch import Launch

from tools.compiled.code import Job, compiled, job_of
from tools.compiled.report import TARGETS, row_of


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


@triton.jit
def sum_of_products_kernel(left_ptr, right_ptr, out_ptr, BLOCK_N: tl.constexpr, ARE_MULTIPLIED: tl.constexpr):
    """The same values summed, as products and as loaded."""
    places = tl.arange(0, BLOCK_N)
    values = tl.load(left_ptr + places)
    if ARE_MULTIPLIED:
        values = values * tl.load(right_ptr + places)
    tl.store(out_ptr, tl.sum(values, 0))


def sum_job(target: str, dtype: torch.dtype, *, are_multiplied: bool, is_contracted: bool) -> Job:
    left, right, out = (torch.empty(128, dtype=dtype, device="meta") for _ in range(3))
    arguments = {"left_ptr": left, "right_ptr": right, "out_ptr": out, "BLOCK_N": 128, "ARE_MULTIPLIED": are_multiplied}
    job = job_of(Launch(sum_of_products_kernel, (1,), arguments, 4, 2), TARGETS[target])
    return replace(job, options={**job.options, "enable_fp_fusion": is_contracted})


def product_job(
    target: str,
    dtype: torch.dtype,
    blocks: tuple[int, int, int],
    *,
    warps: int = 4,
    stages: int = 2,
    n: int = 512,
    precision: str = "ieee",
) -> Job:
    arguments = {
        "left_ptr": torch.empty(128, 512, dtype=dtype, device="meta"),
        "right_ptr": torch.empty(128, 512, dtype=dtype, device="meta"),
        "out_ptr": torch.empty(blocks[:2], device="meta"),
        "n": n,
        "BLOCK_M": blocks[0],
        "BLOCK_N": blocks[1],
        "BLOCK_K": blocks[2],
        "PRECISION": precision,
    }
    return job_of(Launch(product_kernel, (1,), arguments, warps, stages), TARGETS[target])


SUMS = {
    "contracted": {"are_multiplied": True, "is_contracted": True},
    "not contracted": {"are_multiplied": True, "is_contracted": False},
    "no products": {"are_multiplied": False, "is_contracted": True},
}
BF16, FP32 = torch.bfloat16, torch.float32
PRODUCTS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    **{f"bf16 {target}": ((target, BF16, (128, 64, 64)), {}) for target in TARGETS},
    "bf16 of few rows sm_90": (("sm_90", BF16, (16, 64, 64)), {}),
    **{f"fp32 {target}": ((target, FP32, (32, 32, 32)), {}) for target in TARGETS},
    **{f"tf32 {target}": ((target, FP32, (128, 64, 32)), {"precision": "tf32"}) for target in TARGETS},
    "spilling sm_80": (("sm_80", BF16, (128, 128, 16)), {"warps": 1}),
    "spilling gfx942": (("gfx942", BF16, (128, 256, 16)), {"warps": 1}),
    "large sm_80": (("sm_80", BF16, (64, 64, 64)), {"stages": 16}),
}


def main() -> None:
    found = {name: asdict(compiled(product_job(*place, **named))) for name, (place, named) in PRODUCTS.items()}
    for target in ("sm_80", "sm_90", "sm_100"):
        for dtype in (torch.float32, torch.float64):
            for name, options in SUMS.items():
                found[f"{name} {dtype} {target}"] = asdict(compiled(sum_job(target, dtype, **options)))
    out = torch.empty(16, device="meta")
    broken = job_of(Launch(broken_kernel, (1,), {"out_ptr": out, "BLOCK_N": 16}, 4, 2), TARGETS["sm_90"])
    found["broken"] = row_of("sm_90", broken, ("a case",)).as_json()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
