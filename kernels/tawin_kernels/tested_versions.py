"""The releases of torch and triton that the tests run with, and the warning outside of them.

There are no upper bounds: an install next to a newer torch or a serving engine is to work, and says once what it is.
"""

from __future__ import annotations

import re
import warnings

import torch
import triton

TESTED = {"torch": ((2, 13), (2, 15)), "triton": ((3, 6), (3, 9))}
"""First and last release, both tested, as (major, minor)."""


def warn_outside_tested() -> None:
    """One RuntimeWarning, of one line, for all that is outside; called when tawin_kernels is imported."""
    outside = []
    for name, installed in (("torch", torch.__version__), ("triton", triton.__version__)):
        first, last = TESTED[name]
        if not first <= _release(installed) <= last:
            outside.append(f"{name} {installed} (tested: {_text(first)} to {_text(last)})")
    if outside:
        message = f"not tested with {' and '.join(outside)}; run its tests before you rely on results"
        # Without a file of ours, whose line would be printed below the message.
        warnings.warn_explicit(message, RuntimeWarning, filename="tawin_kernels", lineno=1, module="tawin_kernels")


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _text(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))
