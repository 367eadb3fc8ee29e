"""PTX number types as numpy arrays: widths, dtypes, and the conversions that numpy lacks (bf16, tf32).

A register is an immutable array of unsigned integers (of bools for predicates) with one element per thread, or with one
element where all threads have the same value. Floats are views of these bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_] | None
"""The threads that execute; None: all of them."""


class Fault(RuntimeError):
    """What a GPU would do wrong, do undefined, or what this machine does not know."""


# Bits of each PTX type.
WIDTH = {
    "pred": 1,
    **{f"{kind}{bits}": bits for kind in "bsu" for bits in (8, 16, 32, 64)},
    **{"f16": 16, "bf16": 16, "f32": 32, "tf32": 32, "f64": 64},
    **{"f16x2": 32, "bf16x2": 32, "f32x2": 64},
}
UNSIGNED: dict[int, np.dtype[Any]] = {bits: np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)}
# How numpy sees a value of a type; bf16, tf32 and packed pairs as their bits.
DTYPE: dict[str, np.dtype[Any]] = {
    "pred": np.dtype(bool),
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"{kind}{bits}": UNSIGNED[bits] for kind in "bu" for bits in (8, 16, 32, 64)},
    **{"f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8")},
    **{"bf16": UNSIGNED[16], "tf32": UNSIGNED[32], "f16x2": UNSIGNED[32], "bf16x2": UNSIGNED[32]},
    "f32x2": UNSIGNED[64],
}
_SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal
_TF32_BITS = np.uint32(0xFFFFE000)


def from_bf16(bits: Array) -> Array:
    """bf16 bits (uint16) as fp32, exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(values: Array) -> Array:
    """fp32 to bf16 bits, to nearest, ties to even; every NaN becomes PTX's canonical one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.where(np.isnan(values), np.uint16(0x7FFF), (rounded >> np.uint32(16)).astype(np.uint16))


def to_tf32(values: Array) -> Array:
    """fp32 to tf32 bits (uint32), to nearest, ties away from zero."""
    bits = values.view(np.uint32)
    return np.where(np.isfinite(values), (bits + np.uint32(0x1000)) & _TF32_BITS, bits)


def from_tf32(bits: Array) -> Array:
    """What a matrix instruction takes of a 32-bit register: the low 13 bits are not looked at."""
    return (bits & _TF32_BITS).view(np.float32)


def from_16_bits(bits: Array, dtype: str) -> Array:
    """uint16 bits of bf16 or f16 as fp32."""
    return from_bf16(bits) if dtype == "bf16" else bits.view(np.float16).astype(np.float32)


def to_16_bits(values: Array, dtype: str) -> Array:
    """fp32 to the bits of bf16 or f16, to nearest even."""
    return to_bf16(values) if dtype == "bf16" else values.astype(np.float16).view(np.uint16)


def differ(a: Array, b: Array) -> Array:
    """Where unsigned words are different values: two NaNs of fp32 are the same."""
    if a.dtype != np.uint32:
        return np.asarray(a != b)
    left, right = a.view(np.float32), b.view(np.float32)
    return np.asarray((a != b) & ~(np.isnan(left) & np.isnan(right)))


def flushed(values: Array) -> Array:
    """fp32 with subnormal numbers as zeros of their sign (.ftz)."""
    return np.where(np.abs(values) < _SMALLEST_NORMAL, np.copysign(np.float32(0), values), values)


def halves(pairs: Array) -> tuple[Array, Array]:
    """The low and the high 16 bits of uint32."""
    return (pairs & np.uint32(0xFFFF)).astype(np.uint16), (pairs >> np.uint32(16)).astype(np.uint16)


def paired(low: Array, high: Array) -> Array:
    """uint32 of two uint16."""
    return (high.astype(np.uint32) << np.uint32(16)) | low.astype(np.uint32)
