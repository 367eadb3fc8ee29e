"""What benchmarks share: a clock that waits for the device, peak memory, how many rounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

SECONDS_A_BENCHMARK = 1.0
MOST_ROUNDS = 30


def synchronised_clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(work: Callable[[], Any]) -> float:
    start = synchronised_clock()
    work()
    return synchronised_clock() - start


def extra_memory(work: Callable[[], Any]) -> int:
    """Bytes on the GPU at the peak of `work`, beyond what is there when it is done: neither inputs nor gradients."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()


def time_warm(benchmark: BenchmarkFixture, work: Callable[[], Any]) -> float | None:
    """Time work that has run before, about a second but at least once. The median; None with --benchmark-disable."""
    rounds = min(MOST_ROUNDS, max(1, int(SECONDS_A_BENCHMARK / seconds_of(work))))
    benchmark.pedantic(work, rounds=rounds)
    return None if benchmark.stats is None else float(benchmark.stats.stats.median)
