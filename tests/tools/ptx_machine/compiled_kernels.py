"""Triton kernels compiled and run by the machine, as JSON: `python -m tests.tools.ptx_machine.compiled_kernels sm_90`.

A process of its own, as Triton compiles nothing after its interpreter was used.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
import triton.language as tl

from tools.ptx_machine import Fault, compiled_for
from tools.ptx_machine.compile import TARGETS, compiled


@triton.jit
def product_kernel(
    left_ptr,
    right_ptr,
    out_ptr,
    K,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LEFT_TURNED: tl.constexpr,
    RIGHT_TURNED: tl.constexpr,
    SCALE: tl.constexpr,
):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, BLOCK_K)
    products = tl.zeros([M, N], dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        at = start + k
        left = tl.load(left_ptr + (at[None, :] * M + m[:, None] if LEFT_TURNED else m[:, None] * K + at[None, :]))
        right = tl.load(right_ptr + (at[:, None] * N + n[None, :] if RIGHT_TURNED else n[None, :] * K + at[:, None]))
        if SCALE:
            left = (left * 2).to(right.dtype)  # so that the left matrix comes from registers
        products = tl.dot(left, right, products)
    tl.store(out_ptr + m[:, None] * N + n[None, :], products)


@triton.jit
def overlapping_kernel(x_ptr, out_ptr, STEP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + tl.program_id(0) * STEP + i, tl.load(x_ptr + i))


def product(target: str, dtype: torch.dtype, left_turned: bool, right_turned: bool, scale: bool) -> dict[str, Any]:
    M, N, K = 128, 64, 192
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, K, generator=generator).to(dtype) for size in (M, N))
    given = {
        "left_ptr": left.T.contiguous() if left_turned else left,
        "right_ptr": right.T.contiguous() if right_turned else right,
        "out_ptr": torch.empty(M, N),
        "K": K,
        **{"M": M, "N": N, "BLOCK_K": 64, "LEFT_TURNED": left_turned, "RIGHT_TURNED": right_turned, "SCALE": scale},
        "num_stages": 3,
    }
    with compiled_for(target):
        product_kernel[(1,)](**given)
    expected = (2 if scale else 1) * left.double() @ right.double().T
    binary, _ = compiled(product_kernel, TARGETS[target], given)
    known = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")
    return {
        "error": (given["out_ptr"].double() - expected).abs().max().item(),
        "instructions": [name for name in known if name in binary.ptx],
    }


def overlap(target: str, step: int) -> str:
    x, out = torch.arange(64.0), torch.zeros(256)
    try:
        with compiled_for(target):
            overlapping_kernel[(4,)](x, out, STEP=step, BLOCK=64)
    except Fault as fault:
        return str(fault)
    return "" if torch.equal(out, x.repeat(4)) else "wrong"


def main(target: str) -> None:
    found = {
        f"{dtype} {left} {right} {scale}": product(target, dtype, left, right, scale)
        for dtype in (torch.bfloat16, torch.float16)
        for left, right, scale in ((False, False, False), (True, True, False), (False, True, True))
    }
    print(json.dumps({"products": found, "apart": overlap(target, 64), "overlapping": overlap(target, 32)}))


if __name__ == "__main__":
    main(sys.argv[1])
