"""A Triton kernel of your own, compiled for an H100 and run on the CPU: python examples/kernel_without_gpu.py

From the project's root, without a GPU and without TRITON_INTERPRET.
"""

import sys
from pathlib import Path

import torch
import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parents[1]))  # tools/ is no part of the installed package
from tools.ptx_machine import Fault, compiled_for


@triton.jit
def softmax_kernel(x_ptr, out_ptr, n, STEP: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * n + column, mask=column < n, other=-float("inf"))
    weights = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + row * STEP + column, weights / tl.sum(weights, 0), mask=column < n)


x = torch.randn(5, 100)
out = torch.empty_like(x)
with compiled_for("sm_90"):
    softmax_kernel[(5,)](x, out, 100, STEP=100, BLOCK=128)
print("largest error", (out - x.softmax(-1)).abs().max().item())
assert torch.allclose(out, x.softmax(-1), rtol=1e-5, atol=1e-7)

with compiled_for("sm_90"):
    try:
        softmax_kernel[(5,)](x, out, 100, STEP=90, BLOCK=128)  # rows overlap: two programs store to one element
    except Fault as fault:
        print(fault)
