"""What a GPU cannot beat: the least time of a piece of work on an H200, from its bytes and FLOPs.

The rates are assumptions that a measured time is held against, not measurements.
"""

from __future__ import annotations

# Bytes and bf16 FLOPs a second that a good kernel reaches, and what one launch costs.
BYTES_PER_SECOND = 4.3e12
FLOPS_PER_SECOND = 790e12
LAUNCH_SECONDS = 3e-6


def floor_seconds(moved: float, flops: float = 0.0) -> float:
    """The larger of the two times, and a launch. moved: bytes."""
    return max(moved / BYTES_PER_SECOND, flops / FLOPS_PER_SECOND) + LAUNCH_SECONDS
