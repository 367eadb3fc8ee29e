"""Runs what Triton compiles for a GPU (PTX of sm_80, sm_90, sm_100) on the CPU, and finds races and stray accesses.

`compiled_for("sm_90")` takes the launches of any Triton kernel; `pytest tests/kernels --compiled sm_90` runs the tests
of tawin's. docs/KERNELS.md says what that proves.
"""

from .core.values import Fault
from .launch import compiled_for

__all__ = ["Fault", "compiled_for"]
