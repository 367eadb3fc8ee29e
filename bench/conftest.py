"""What the suites do before and after each benchmark."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def leave_no_memory_behind() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture
def fresh_compiler() -> None:
    torch.compiler.reset()  # else the shapes before count against the limit of recompilations
