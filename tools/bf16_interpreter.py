"""bf16 in Triton's interpreter, which by itself cuts off where a GPU rounds and multiplies the bits of bf16 operands.

For `confident_tokens`. Mended: conversions between fp32 and bf16, and matrix products. Seen with triton 3.7.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def _narrow(values: numpy.ndarray) -> numpy.ndarray:
    """The bits of fp32 values rounded to bf16, to the nearest, ties to even."""
    rounded = torch.from_numpy(numpy.array(values, dtype=numpy.float32)).bfloat16()
    return rounded.view(torch.int16).numpy().view(numpy.uint16)


def _wide(bits: numpy.ndarray) -> numpy.ndarray:
    return (bits.astype(numpy.uint32) << 16).view(numpy.float32)


@contextmanager
def exact_bf16() -> Iterator[None]:
    """Within it kernels on bf16 tensors give in the interpreter what they would give on a GPU, but for last bits."""
    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def cast_impl(self: Any, source: Any, dtype: Any) -> Any:
        kinds = (source.dtype.scalar, dtype.scalar)
        if kinds == (tl.float32, tl.bfloat16):
            return TensorHandle(_narrow(source.data), tl.bfloat16)
        if kinds == (tl.bfloat16, tl.float32):
            return TensorHandle(_wide(source.data), tl.float32)
        return cast(self, source, dtype)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (TensorHandle(_wide(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, *rest)

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = cast_impl, create_dot
    try:
        yield
    finally:
        InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = cast, dot
