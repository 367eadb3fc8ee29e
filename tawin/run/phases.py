"""Names for the parts of a training step, so that a profiler shows them and a benchmark can time them.

The code of a step says `with phase("decode"):`. Unless somebody collects, that is one label for torch.profiler and
costs a microsecond. Knows nothing of what the parts do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

import torch
from torch.profiler import record_function

Phase = Literal["prefill", "decode", "reward", "reference", "policy_forward", "loss", "backward", "optimizer"]
PHASES: tuple[Phase, ...] = get_args(Phase)

_seconds: ContextVar[dict[str, float] | None] = ContextVar("_seconds", default=None)


@contextmanager
def phase(name: Phase) -> Iterator[None]:
    """A part of a step; parts may come several times in a step, and lie within each other (both count then)."""
    seconds = _seconds.get()
    start = _now() if seconds is not None else 0.0
    with record_function(f"tawin.{name}"):
        yield
    if seconds is not None:
        seconds[name] += _now() - start


@contextmanager
def phase_seconds() -> Iterator[dict[str, float]]:
    """Within it the seconds of every phase add up in the dict that is yielded.

    On CUDA each border of a phase waits for the device, which keeps the phases from overlapping: their sum is more
    than a step takes otherwise.
    """
    seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
    token = _seconds.set(seconds)
    try:
        yield seconds
    finally:
        _seconds.reset(token)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
