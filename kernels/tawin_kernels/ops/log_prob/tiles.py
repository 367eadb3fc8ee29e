"""Tiles [rows, tokens] of the product of hidden states and LM head: their sizes by target, and the product itself.

What all kernels of the log-prob head share.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ...launch import target_of

_WARPS_AT_ONCE = 16  # of a multiprocessor, with 128 registers a thread


class Head(NamedTuple):
    """The LM head and what goes into it."""

    hidden: torch.Tensor  # [R, H], the elements of a row side by side
    weight: torch.Tensor  # [V, H], likewise
    bias: torch.Tensor | None  # [V]
    temperature: float


class MatrixTiles(NamedTuple):
    """Block sizes of a product [rows, H] x [tokens, H]^T."""

    rows: int
    tokens: int
    hidden: int
    num_warps: int
    num_stages: int


def matrix_tiles(rows: int, hidden: torch.Tensor, weight: torch.Tensor) -> MatrixTiles:
    """The block sizes for at most `rows` rows of hidden [R, H] times weight [V, H].

    Many rows: as large a tile as the registers hold, since a tile's operands come from L2 for every tile anew; one
    program a multiprocessor (on sm_90 147,456 bytes of shared memory and 256 threads of 219 registers, without bias
    and entropy). Few rows: the weight is read once and that is all, so the tile is flat and more of them are on their
    way. Rows that do not begin at multiples of 8 elements and of 16 bytes are loaded an element at a time, through
    registers that the tile then lacks.
    """
    target = target_of(hidden.device)
    is_aligned = row_multiple(hidden, weight) > 1 or _is_specialized(hidden, weight)
    if hidden.dtype == torch.float32:
        # Plain fused multiply-adds, one thread an element: tensor cores would round the operands to tf32.
        if rows <= 16:
            return MatrixTiles(16, 64, 32, 4, 2)
        return MatrixTiles(64 if is_aligned else 32, 64, 32, 8, 2)
    if rows <= 16:
        return MatrixTiles(16, 128, 64, 4, 2 if target.backend == "hip" else 4)
    if not is_aligned:
        return MatrixTiles(64, 128, 32, 8, 2)
    if target.backend == "hip":
        return MatrixTiles(64, 128, 64, 4, 2) if rows <= 64 else MatrixTiles(128, 128, 64, 8, 2)
    if rows <= 64:
        return MatrixTiles(64, 128, 64, 4, 3)
    if target.shared_memory >= 227 * 1024:
        return MatrixTiles(128, 256, 64, 8, 3)
    return MatrixTiles(128, 128, 32, 8, 4)


def programs_at_once(tiles: MatrixTiles, hidden: torch.Tensor) -> int:
    """How many programs of a kernel that calls `dot_tile` share a multiprocessor, at least.

    Few rows wait for the weight: the more tiles are on their way, the better. They are multiplied by mma.sync, whose
    operands have one buffer less than there are stages (bf16, sm_90: 55,296 bytes and at most 118 registers of 128
    threads, four fit). Tiles of many rows have the registers of a multiprocessor for themselves.
    """
    if tiles.rows > 16:
        return 1
    buffer = (tiles.rows + tiles.tokens) * tiles.hidden * hidden.element_size()
    shared = (tiles.num_stages - 1) * buffer + 1024  # which the hardware adds
    return max(1, min(_WARPS_AT_ONCE // tiles.num_warps, target_of(hidden.device).shared_memory // shared))


def row_multiple(hidden: torch.Tensor, weight: torch.Tensor) -> int:
    """What a kernel multiplies H and the strides of rows by: a factor of them that the compiler can rely on.

    By itself Triton sees whether an argument is a multiple of 16. Multiples of 8, as an H of 1,000, are enough for
    loads of 16 bytes: they are passed divided by 8.
    """
    sizes = (hidden.shape[1], hidden.stride(0), weight.stride(0))
    begin_aligned = all(matrix.data_ptr() % 16 == 0 for matrix in (hidden, weight))
    return 8 if begin_aligned and all(size % 8 == 0 for size in sizes) and any(size % 16 for size in sizes) else 1


def _is_specialized(hidden: torch.Tensor, weight: torch.Tensor) -> bool:
    """All that Triton looks at is a multiple of 16: sizes, and the addresses of the first elements."""
    sizes = (hidden.shape[1], hidden.stride(0), weight.stride(0), hidden.data_ptr(), weight.data_ptr())
    return all(size % 16 == 0 for size in sizes)


def matrix_sizes(hidden: torch.Tensor, weight: torch.Tensor, tiles: MatrixTiles) -> dict[str, Any]:
    """The arguments of a kernel that calls `dot_tile`, those of block sizes but BLOCK_V among them."""
    multiple = row_multiple(hidden, weight)
    return {
        "H": hidden.shape[1] // multiple,
        "stride_hidden_row": hidden.stride(0) // multiple,
        "stride_weight_row": weight.stride(0) // multiple,
        "BLOCK_R": tiles.rows,
        "BLOCK_H": tiles.hidden,
        "EVEN_H": hidden.shape[1] % tiles.hidden == 0,
        "MULTIPLE": multiple,
    }


@triton.jit
def dot_tile(
    hidden_ptrs,
    weight_ptrs,
    H,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    EVEN_H: tl.constexpr,
):
    """fp32 [BLOCK_R, BLOCK_V]: rows at hidden_ptrs [BLOCK_R, BLOCK_H] times rows at weight_ptrs [BLOCK_H, BLOCK_V]."""
    products = tl.zeros([BLOCK_R, BLOCK_V], dtype=tl.float32)
    offsets_h = tl.arange(0, BLOCK_H)
    for start in range(0, H, BLOCK_H):
        if EVEN_H:
            hidden = tl.load(hidden_ptrs + start)
            weight = tl.load(weight_ptrs + start)
        else:
            inside = start + offsets_h < H
            hidden = tl.load(hidden_ptrs + start, mask=inside[None, :], other=0.0)
            weight = tl.load(weight_ptrs + start, mask=inside[:, None], other=0.0)
        products = tl.dot(hidden, weight, products, input_precision="ieee")
    return products


def rows_in_place(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix itself if the elements of a row lie side by side, else a copy in which they do."""
    return matrix if matrix.stride(-1) == 1 else matrix.contiguous()
