"""The machine of a GPU run: its software, and what PyTorch's own copy and matrix product reach on it."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton

from bench.measure import machine_facts, seconds_of


def device_facts(device: torch.device) -> dict[str, Any]:
    """The device and the software that figures depend on."""
    facts = {**machine_facts(device), "triton": triton.__version__, "cuda": torch.version.cuda}
    if device.type != "cuda":
        return facts
    properties = torch.cuda.get_device_properties(device)
    query = "driver_version,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        settings = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        settings = "nvidia-smi does not answer"
    return {
        **facts,
        "hip": torch.version.hip,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        query: settings,
    }


def ceilings(device: torch.device, seconds: float) -> dict[str, Any]:
    """Random data, as zeros draw less power and run faster; for a while each, as clocks fall when hot."""
    is_gpu = device.type == "cuda"
    draw = torch.Generator(device).manual_seed(0)
    source = torch.randn(2**29 if is_gpu else 2**18, generator=draw, device=device)  # 2 GiB
    copy = _times(torch.empty_like(source).copy_, (source,), min(2.0, seconds / 4))
    moved = 2 * source.nbytes
    n = 8192 if is_gpu else 128
    matrices = [torch.randn(n, n, generator=draw, device=device).bfloat16() for _ in range(2)]
    product = _times(torch.mm, matrices, min(3.0, seconds / 4))
    flops = 2 * n**3
    return {
        "passed": True,
        "copy_bytes": moved,
        "copy_bytes_per_second_median": moved / statistics.median(copy),
        "copy_bytes_per_second_best": moved / min(copy),
        "bf16_product": f"{n} x {n} x {n}",
        "bf16_flops_per_second_median": flops / statistics.median(product),
        "bf16_flops_per_second_best": flops / min(product),
    }


def _times(work: Callable[..., Any], tensors: Sequence[torch.Tensor], seconds: float) -> list[float]:
    """Seconds of each call, on a GPU by its own clock, for about so long, after a warm-up."""
    for _ in range(3):
        work(*tensors)
    measured = _seconds_on_gpu if tensors[0].is_cuda else seconds_of
    times = []
    end = time.monotonic() + seconds
    while not times or time.monotonic() < end:
        times.append(measured(lambda: work(*tensors)))
    return times


def _seconds_on_gpu(work: Callable[[], Any]) -> float:
    begin, finish = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    finish.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(finish) / 1e3
