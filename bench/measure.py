"""What benchmarks share: a clock that waits for the device, peak memory, rounds, the machine, files of results.

It imports torch and nothing of the trainer's: `tools.gpu.run` begins with it where only the kernels are installed.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

RESULTS = Path(__file__).parent / "results"
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


def reset_peak_bytes() -> int:
    """Forget the highest memory of this process so far; returns what it holds now.

    Freed memory that glibc keeps for itself is given back first: work that took it again would seem to need none.
    Another allocator goes its own way. OSError where the system cannot forget.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory_bytes("VmRSS")


def memory_bytes(name: str) -> int:
    """A value of /proc/self/status: VmRSS, what the process holds, or VmHWM, the most that it held."""
    found = re.search(rf"^{name}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, f"/proc/self/status has no {name}"
    return int(found[1]) * 1024


def cpu_model() -> str:
    """The model's name as Linux gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What figures depend on. The load is that before the run: other work makes all ways slower."""
    cpu = cpu_model()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("OMP_", "GOMP_", "MKL_", "MALLOC_")) or name == "LD_PRELOAD"
        },
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def named_by_device(name: str, device: str) -> str:
    """A file's name of a name and of a device as machines call it: "gpu-nvidia-h200"."""
    return f"{name}-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}"


def time_stamp(now: datetime.datetime | None = None) -> str:
    """In UTC, fit for a file's name."""
    return (now or datetime.datetime.now(datetime.UTC)).strftime("%Y-%m-%dT%H%M%SZ")


def write_results(figures: dict[str, Any], folder: Path, name: str) -> Path:
    """Write <name>-<date and time>.json; an existing file is never overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{time_stamp()}.json"
    with path.open("x") as file:
        file.write(json.dumps(figures, indent=1) + "\n")
    return path


def write_device_results(figures: dict[str, Any], folder: Path, suite: str) -> Path:
    """Write <suite>-<device>-<date and time>.json, the device of figures["machine"]."""
    return write_results(figures, folder, named_by_device(suite, figures["machine"]["device"]))


def time_warm(benchmark: BenchmarkFixture, work: Callable[[], Any]) -> float | None:
    """Time work that has run before, about a second but at least once. The median; None with --benchmark-disable."""
    rounds = min(MOST_ROUNDS, max(1, int(SECONDS_A_BENCHMARK / seconds_of(work))))
    benchmark.pedantic(work, rounds=rounds)
    return None if benchmark.stats is None else float(benchmark.stats.stats.median)
