"""What PTX's arithmetic does where numpy's own differs: division, shifts, bit fields, minimum and maximum, fused sums.

Functions of arrays of the operands' dtypes; elements are threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .values import UNSIGNED, Array

_SPLIT = 134217729.0  # 2**27 + 1: halves of an fp64 significand
_ROUND: dict[str, Callable[[Array], Array]] = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}


def fused_f32(a: Array, b: Array, c: Array) -> Array:
    """a * b + c: the product is exact in fp64, the sum is rounded there and once more to fp32."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def fused_f64(a: Array, b: Array, c: Array) -> Array:
    """a * b + c with the product's rounding error kept (Dekker, Knuth); nearly always rounded once."""
    product = a * b
    a_high, b_high = _high_half(a), _high_half(b)
    a_low, b_low = a - a_high, b - b_high
    lost = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    total = product + c
    moved = total - product
    result = total + (lost + ((product - (total - moved)) + (c - moved)))
    return np.where(np.isfinite(result), result, total)


def _high_half(values: Array) -> Array:
    big = values * _SPLIT
    return big - (big - values)


def quotient(a: Array, b: Array) -> Array:
    """Integer division towards zero; by zero all bits are set, as on NVIDIA's GPUs."""
    divisor = np.where(b == 0, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        return np.where(b == 0, ~np.zeros_like(a), a // divisor)
    floor = a // divisor
    is_negative_and_broken = (a % divisor != 0) & ((a < 0) != (b < 0))
    return np.where(b == 0, a.dtype.type(-1), floor + is_negative_and_broken.astype(a.dtype))


def remainder(a: Array, b: Array) -> Array:
    """Of the division towards zero: it has the sign of `a`."""
    return a - b * quotient(a, b)


def shifted_left(a: Array, count: Array) -> Array:
    """Counts (uint32) beyond the width give 0."""
    width = a.dtype.itemsize * 8
    moved = a << np.minimum(count, np.uint32(width - 1)).astype(a.dtype)
    return np.where(count >= width, a.dtype.type(0), moved)


def shifted_right(a: Array, count: Array) -> Array:
    """Of signed numbers with copies of the sign; counts beyond the width give 0 or all signs."""
    width = a.dtype.itemsize * 8
    moved = a >> np.minimum(count, np.uint32(width - 1)).astype(a.dtype)
    return moved if a.dtype.kind == "i" else np.where(count >= width, a.dtype.type(0), moved)


def funnel(low: Array, high: Array, count: Array, *, left: bool) -> Array:
    """shf.wrap: 32 bits of high:low after a shift by count modulo 32."""
    both = (high.astype(np.uint64) << np.uint64(32)) | low
    by = (count & np.uint32(31)).astype(np.uint64)
    return ((both << by) >> np.uint64(32) if left else both >> by).astype(np.uint32)


def high_product(a: Array, b: Array) -> Array:
    """The upper half of the product of 32- or 64-bit integers."""
    if a.dtype.itemsize == 4:
        wide = np.dtype(f"{a.dtype.kind}8").type
        return ((a.astype(wide) * b.astype(wide)) >> wide(32)).astype(a.dtype)
    unsigned = _high_unsigned(a.view(np.uint64), b.view(np.uint64))
    if a.dtype.kind == "u":
        return unsigned
    corrected = unsigned - np.where(a < 0, b, 0).view(np.uint64) - np.where(b < 0, a, 0).view(np.uint64)
    return corrected.view(np.int64)


def _high_unsigned(a: Array, b: Array) -> Array:
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a_low, a_high, b_low, b_high = a & low, a >> half, b & low, b >> half
    middle = a_high * b_low + ((a_low * b_low) >> half)
    other = a_low * b_high + (middle & low)
    return a_high * b_high + (middle >> half) + (other >> half)


def to_integer(values: Array, dtype: np.dtype[Any], rounding: str) -> Array:
    """Floats to integers: clamped to the range, NaN to 0."""
    rounded = _ROUND[rounding](values.astype(np.float64))
    limits = np.iinfo(dtype)
    low, high = float(limits.min), float(limits.max)
    inside = (rounded > low) & (rounded < high)
    clamped = np.where(rounded >= high, dtype.type(limits.max), dtype.type(limits.min))
    clamped = np.where(np.isnan(rounded), dtype.type(0), clamped)
    return np.where(inside, np.where(inside, rounded, 0.0).astype(dtype), clamped)


def rounded(values: Array, rounding: str) -> Array:
    """To a whole number of the same format."""
    return _ROUND[rounding](values)


def _of_equal(a: Array, b: Array, combine: np.ufunc) -> Array:
    bits = UNSIGNED[a.dtype.itemsize * 8]
    return combine(a.view(bits), b.view(bits)).view(a.dtype)


def maximum(a: Array, b: Array) -> Array:
    """Of floats: the number where one is NaN; +0 is above -0."""
    return np.where(a == b, _of_equal(a, b, np.bitwise_and), np.fmax(a, b))


def minimum(a: Array, b: Array) -> Array:
    return np.where(a == b, _of_equal(a, b, np.bitwise_or), np.fmin(a, b))


def maximum_or_nan(a: Array, b: Array) -> Array:
    """max.NaN: NaN where either is."""
    return np.where(a == b, _of_equal(a, b, np.bitwise_and), np.maximum(a, b))


def minimum_or_nan(a: Array, b: Array) -> Array:
    return np.where(a == b, _of_equal(a, b, np.bitwise_or), np.minimum(a, b))


def permuted_bytes(a: Array, b: Array, selector: Array) -> Array:
    """prmt in its default mode: each nibble picks one of eight bytes, or copies of that byte's sign."""
    eight = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    out = np.zeros(np.broadcast_shapes(eight.shape, selector.shape), np.uint32)
    for i in range(4):
        nibble = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = (eight >> ((nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8))).astype(np.uint32) & np.uint32(255)
        sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
        out |= np.where(nibble & np.uint32(8), sign, byte) << np.uint32(8 * i)
    return out


def logic_of_three(a: Array, b: Array, c: Array, table: int) -> Array:
    """lop3: bit i of `table` is the result where the bits of a, b, c spell i."""
    out = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), np.uint32)
    for i in range(8):
        if table >> i & 1:
            out |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return out


def bit_field(a: Array, position: Array, length: Array) -> Array:
    """bfe: of signed `a` with copies of the field's upper bit, or of the sign where the field reaches beyond it."""
    width = a.dtype.itemsize * 8
    unsigned = UNSIGNED[width]
    begin = np.minimum(position & np.uint32(255), np.uint32(width)).astype(np.int64)
    size = np.minimum(length & np.uint32(255), np.uint32(width)).astype(np.int64)
    bits = a.view(unsigned).astype(np.uint64)
    field = np.where(begin >= width, np.uint64(0), bits >> np.minimum(begin, 63).astype(np.uint64)) & _ones(size)
    if a.dtype.kind == "i":
        top = np.clip(begin + size - 1, 0, width - 1).astype(np.uint64)
        is_negative = ((bits >> top) & np.uint64(1)).astype(bool) & (size > 0)
        field = np.where(is_negative, field | ~_ones(np.minimum(size, np.maximum(width - begin, 0))), field)
    return field.astype(unsigned).view(a.dtype)


def with_bit_field(a: Array, b: Array, position: Array, length: Array) -> Array:
    """bfi: `b` with the low bits of `a` at a position."""
    width = b.dtype.itemsize * 8
    begin = (position & np.uint32(255)).astype(np.int64)
    size = np.minimum((length & np.uint32(255)).astype(np.int64), width)
    by = np.minimum(begin, 63).astype(np.uint64)
    mask = np.where(begin >= width, np.uint64(0), _ones(size) << by)
    return ((b.astype(np.uint64) & ~mask) | ((a.astype(np.uint64) << by) & mask)).astype(b.dtype)


def _ones(count: Array) -> Array:
    """uint64 with the low `count` bits set."""
    partly = (np.uint64(1) << np.minimum(count, 63).astype(np.uint64)) - np.uint64(1)
    return np.where(count >= 64, ~np.uint64(0), partly)


def leading_zeros(a: Array) -> Array:
    filled = a.copy()
    width = a.dtype.itemsize * 8
    shift = 1
    while shift < width:
        filled |= filled >> a.dtype.type(shift)
        shift *= 2
    return (np.uint32(width) - np.bitwise_count(filled)).astype(np.uint32)
