"""Matrices of 16-bit elements in shared memory, as the descriptors of wgmma and tcgen05.mma say where they lie.

A descriptor has the address, two strides in units of 16 bytes, and how the 16-byte pieces of a row are swizzled: by an
exclusive or with the number of the row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.values import Array, Fault

_FIELD = 0x3FFF
# Bytes of a swizzled row, and the bits of the row's number that move its pieces.
_SWIZZLES = {0: (16, 0), 1: (128, 7), 2: (64, 3), 3: (32, 1)}
_BLACKWELL_SWIZZLES = {0: 0, 2: 1, 4: 2, 6: 3}


@dataclass(frozen=True)
class Descriptor:
    start: int
    leading: int
    """Bytes between neighbouring pieces: of 8 columns without swizzle; of a row's elements where transposed."""
    stride: int
    """Bytes between neighbouring groups of 8 rows (transposed: of 8 columns)."""
    swizzle: int

    @classmethod
    def of_wgmma(cls, bits: int) -> Descriptor:
        if bits >> 49 & 7:
            raise Fault("a descriptor with a base offset")
        return cls._of(bits, bits >> 62 & 3)

    @classmethod
    def of_tcgen05(cls, bits: int) -> Descriptor:
        mode = bits >> 61 & 7
        if bits >> 49 & 7 or mode not in _BLACKWELL_SWIZZLES:
            raise Fault(f"a descriptor with a base offset, or of swizzle {mode}")
        return cls._of(bits, _BLACKWELL_SWIZZLES[mode])

    @classmethod
    def _of(cls, bits: int, swizzle: int) -> Descriptor:
        return cls((bits & _FIELD) << 4, (bits >> 16 & _FIELD) << 4, (bits >> 32 & _FIELD) << 4, swizzle)

    def addresses(self, rows: int, columns: int, *, transposed: bool) -> Array:
        """int64 [rows, columns]: the byte of a program's shared memory where each element begins.

        Rows are M or N, columns are K. transposed: neighbouring elements differ in the row.
        """
        r, k = np.arange(rows)[:, None], np.arange(columns)[None, :]
        width, bits = _SWIZZLES[self.swizzle]
        if self.swizzle == 0:
            if transposed:
                raise Fault("a transposed matrix without swizzle")
            return self.start + (r // 8) * self.stride + (r % 8) * 16 + (k // 8) * self.leading + (k % 8) * 2
        if transposed:
            along = width // 2  # elements of a swizzled row
            at = self.start + (r // along) * self.leading + (k // 8) * self.stride + (k % 8) * width + (r % along) * 2
        else:
            at = self.start + (r // 8) * self.stride + (r % 8) * width + k * 2
        return at ^ ((at >> 7 & bits) << 4)
