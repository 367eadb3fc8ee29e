"""The known instructions by family; importing a family puts it into the table."""

from . import bits, convert, floats, integers, matrix, memory, moves, synchronize, tensor, warp, warpgroup

__all__ = [
    "bits",
    "convert",
    "floats",
    "integers",
    "matrix",
    "memory",
    "moves",
    "synchronize",
    "tensor",
    "warp",
    "warpgroup",
]
