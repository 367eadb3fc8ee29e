"""What a suite cannot run on this machine is a skip that says why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from .peers import MissingPeer


@contextmanager
def skipped_where_it_cannot_run(way: str) -> Iterator[None]:
    """Within it a peer that is not installed, and a lack of the device's memory, skip the benchmark."""
    try:
        yield
    except MissingPeer as missing:
        pytest.skip(str(missing))
    except torch.cuda.OutOfMemoryError as full:
        pytest.skip(f"{way} does not fit into the device's memory: {full}")
