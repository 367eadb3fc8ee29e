"""One call on a machine with a GPU: is it right, and how fast is it?

Run: python -m tools.gpu.run --out FOLDER [--minutes 9.5] [--quick] [--parts ceilings,tests,...]
     python -m tools.gpu.run --out FOLDER --parts fuzz,sanitize

The tests want torch, triton, pytest and hypothesis; the suites pytest-benchmark and transformers too, beam_search and
training_step all of the extra `train` but tyro. A suite that cannot be imported is a failure of that part alone, a peer
that is not installed a skip.

The parts, each with its share of the minutes; what one does not use is left to those after it:
* ceilings: the bytes a second of a large copy on the device and the bf16 FLOPs a second of a large matrix product, on
  random data (zeros draw less power and run faster);
* tests: pytest tests/kernels;
* checks: tools.gpu.kernel_checks, every op against the reference op in fp64 at shapes of real work;
* a part for each benchmark suite, `pytest bench/bench_<name>.py`; --quick takes each one's base point alone;
* only where --parts names them: decode_attention, bench.bench_decode_attention, which has a table of its own; fuzz,
  tools.fuzz.run on the GPU; sanitize, compute-sanitizer over the kernel tests.
All but the ceilings are processes of their own: what crashes or hangs takes nothing else with it. FOLDER gets one JSON
file named by device and time (UTC), written anew after every part, so a call that is cut off leaves what it had.
The exit status is 1 if a test or check failed, or a benchmark failed to agree or to run. A part that is out of time has
what it had by then; that is a failure of the tests and the checks, not of a benchmark. 2: nothing was run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton

from bench.measure import machine_facts, named_by_device, time_stamp

from .process import LAST_CHARACTERS, pytest_command, run_process
from .sanitize import TOOLS, run_tools

DEVICE = torch.device("cuda")
_PYTEST_STOPPED = 2


@dataclass(frozen=True)
class Part:
    """run: from seconds to results, among them "passed"; weight: its share of the time."""

    name: str
    weight: float
    run: Callable[[float], dict[str, Any]]


@dataclass(frozen=True)
class Suite:
    """base: the pytest -k expression of the one point that --quick measures."""

    name: str
    weight: float
    base: str


SUITES = (
    Suite("beam_step", 4.0, "[base- or [trie-"),
    Suite("beam_search", 1.0, ""),
    Suite("log_prob", 2.0, "[step- or [distinct-"),
    Suite("grpo_loss", 2.0, "[step- or [distinct-"),
    Suite("advantage", 1.0, "identity"),
    Suite("training_step", 4.0, "[ids-"),
)


def parts(quick: bool) -> list[Part]:
    return [
        Part("ceilings", 0.5, ceilings),
        Part("tests", 3.0, run_tests),
        Part("checks", 2.0, run_checks),
        *(Part(suite.name, suite.weight, partial(run_suite, suite, quick)) for suite in SUITES),
    ]


def optional_parts() -> list[Part]:
    """What takes minutes by itself and is no measurement: run where it is asked for by name. Not run on a GPU yet."""
    return [
        Part("decode_attention", 1.0, run_decode_attention),
        Part("fuzz", 1.0, run_fuzz),
        Part("sanitize", 2.0, lambda limit: run_tools(TOOLS, ["tests/kernels"], limit)),
    ]


def gpu_facts() -> dict[str, Any]:
    """The GPU and the software that figures depend on."""
    properties = torch.cuda.get_device_properties(DEVICE)
    query = "driver_version,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        settings = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        settings = "nvidia-smi does not answer"
    return {
        **machine_facts(DEVICE),
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        query: settings,
    }


def ceilings(seconds: float) -> dict[str, Any]:
    """What the device reaches with PyTorch's own copy and matrix product, each for a while, as clocks fall when hot."""
    draw = torch.Generator(DEVICE).manual_seed(0)
    source = torch.randn(2**29, generator=draw, device=DEVICE)  # 2 GiB
    copy = _event_times(torch.empty_like(source).copy_, (source,), min(2.0, seconds / 4))
    moved = 2 * source.nbytes
    n = 8192
    matrices = [torch.randn(n, n, generator=draw, device=DEVICE).bfloat16() for _ in range(2)]
    product = _event_times(torch.mm, matrices, min(3.0, seconds / 4))
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


def _event_times(work: Callable[..., Any], tensors: Sequence[torch.Tensor], seconds: float) -> list[float]:
    """Seconds of each call by the device's clock, for about so long, after a warm-up."""
    for _ in range(3):
        work(*tensors)
    torch.cuda.synchronize()
    times = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begin, finish = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work(*tensors)
        finish.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(finish) / 1e3)
    return times


def run_tests(limit: float) -> dict[str, Any]:
    return _judged(run_process(pytest_command("tests/kernels", limit=limit), limit))


def run_checks(limit: float, *arguments: str, **variables: str) -> dict[str, Any]:
    """arguments: of tools.gpu.kernel_checks; variables: of its environment."""
    result = run_process(
        [sys.executable, "-m", "tools.gpu.kernel_checks", *arguments], limit, keep_all=True, **variables
    )
    # Warnings and tracebacks stand between the lines of JSON.
    lines = result["output"].splitlines()
    checks = [json.loads(line) for line in lines if line.startswith('{"check"')]
    rest = "\n".join(line for line in lines if not line.startswith('{"check"'))[-LAST_CHARACTERS:]
    failed = [check["check"] for check in checks if not check["passed"]]
    return {
        **result,
        "output": rest,
        "passed": result["status"] == 0,
        "summary": f"{len(checks) - len(failed)} of {len(checks)} passed{''.join(f'; failed: {f}' for f in failed)}",
        "checks": checks,
    }


def run_decode_attention(limit: float) -> dict[str, Any]:
    return _judged(run_process([sys.executable, "-m", "bench.bench_decode_attention"], limit, keep_all=True))


def run_fuzz(limit: float) -> dict[str, Any]:
    minutes = max(0.1, (limit - 30) / 60)  # what it takes to start
    command = [sys.executable, "-m", "tools.fuzz.run", "--device", "cuda", "--minutes", f"{minutes:.2f}"]
    result = _judged(run_process(command, limit))
    lines = [line for line in result["output"].splitlines() if " cases, " in line]
    return {**result, "summary": "; ".join(lines) or result["summary"]}


def run_suite(suite: Suite, quick: bool, limit: float) -> dict[str, Any]:
    """Out of time it passes, with what was measured by then."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmark.json"
        command = [*pytest_command(f"bench/bench_{suite.name}.py", limit=limit), f"--benchmark-json={path}"]
        if quick and suite.base:
            command += ["-k", suite.base]
        result = run_process(command, limit)
        measured = _benchmarks(path)
    for one in measured:
        one["stats"].pop("data", None)
    return {
        **result,
        "passed": result["out_of_time"] or result["status"] in (0, _PYTEST_STOPPED),
        "summary": f"{len(measured)} measured; {_last_line(result['output'])}",
        "benchmarks": measured,
    }


def _benchmarks(path: Path) -> list[dict[str, Any]]:
    """Of pytest-benchmark's file; none where it was not written, or not to its end."""
    try:
        return json.loads(path.read_text())["benchmarks"]
    except (FileNotFoundError, json.JSONDecodeError):
        return []


def _judged(result: dict[str, Any]) -> dict[str, Any]:
    """A part that passes with exit status 0 and says in its last line what it came to."""
    return {**result, "passed": result["status"] == 0, "summary": _last_line(result["output"])}


def _last_line(output: str) -> str:
    return next((line.strip("= ") for line in reversed(output.splitlines()) if line.strip("= ")), "")


def run_part(part: Part, limit: float) -> dict[str, Any]:
    """Its results; what it raises is one of them."""
    start = time.monotonic()
    try:
        result = part.run(limit)
    except Exception as error:  # a part that fails does not stop those after it
        result = {"passed": False, "summary": f"{type(error).__name__}: {error}"}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the next part is another process
    return {"seconds": round(time.monotonic() - start, 1), "limit": round(limit, 1), **result}


def run_all(chosen: Sequence[Part], minutes: float, report: dict[str, Any], save: Callable[[], None]) -> None:
    """Run the parts one after another into report["parts"]; the time that is left is shared by weight."""
    end = time.monotonic() + minutes * 60
    for number, part in enumerate(chosen):
        share = part.weight / sum(other.weight for other in chosen[number:])
        limit = max(1.0, (end - time.monotonic()) * share)
        print(f"{part.name}: up to {limit:.0f} s", flush=True)
        report["parts"][part.name] = result = run_part(part, limit)
        passed = "passed" if result["passed"] else "FAILED"
        print(f"{part.name}: {passed} in {result['seconds']} s. {result.get('summary', '')}", flush=True)
        save()


def report_path(folder: Path, device: str, now: datetime.datetime) -> Path:
    return folder / f"{named_by_device('gpu', device)}-{time_stamp(now)}.json"


def save_report(path: Path, report: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(report, indent=1) + "\n")
    unfinished.replace(path)


def table(report: dict[str, Any]) -> str:
    """Ours against the fastest other way of every group of benchmarks, and the ceilings."""
    lines = []
    found = report["parts"].get("ceilings", {})
    if "copy_bytes_per_second_median" in found:
        copy, product = found["copy_bytes_per_second_median"], found["bf16_flops_per_second_median"]
        lines.append(f"copy {copy / 1e12:.2f} TB/s, bf16 matrix product {product / 1e12:.0f} TFLOP/s (medians)")
    lines.append(f"{'benchmark':<52}{'ours, us':>11}{'other, us':>11}{'ratio':>8}{'of floor':>10}  fastest other way")
    for part, result in report["parts"].items():
        groups: dict[str, list[dict[str, Any]]] = {}
        for one in result.get("benchmarks", []):
            groups.setdefault(one["group"] or "", []).append(one)
        for group, members in groups.items():
            ours = [one for one in members if way_of(one) == "ours"]
            others = sorted((one for one in members if way_of(one) != "ours"), key=microseconds_of)
            if not ours:
                continue
            line = f"{(part + ': ' + group)[:51]:<52}{microseconds_of(ours[0]):>11.1f}"
            if others:
                ratio = microseconds_of(others[0]) / microseconds_of(ours[0])
                line += f"{microseconds_of(others[0]):>11.1f}{ratio:>7.2f}x"
            else:
                line += " " * 19
            over = ours[0]["extra_info"].get("time_over_floor")
            line += f"{over if over is not None else '-':>10}  {way_of(others[0]) if others else '-'}"
            lines.append(line)
    return "\n".join(lines)


def way_of(benchmark: dict[str, Any]) -> str:
    """ "ours" or the name of a peer."""
    if "way" in benchmark["extra_info"]:
        return str(benchmark["extra_info"]["way"])
    name = benchmark["name"].removeprefix("test_")
    return "ours" if "tree_attention" in name else name


def microseconds_of(benchmark: dict[str, Any]) -> float:
    """Of one call: a round of some suites is many."""
    info = benchmark["extra_info"]
    return float(
        info.get("microseconds_a_step") or info.get("microseconds_a_call") or benchmark["stats"]["median"] * 1e6
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.run", description=__doc__.splitlines()[0])
    usual = [part.name for part in parts(quick=False)]
    names = [*usual, *(part.name for part in optional_parts())]
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the JSON file goes")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all parts together")
    parser.add_argument("--quick", action="store_true", help="only the base point of each benchmark suite")
    parser.add_argument("--parts", default=",".join(usual), help=f"some of {','.join(names)}")
    options = parser.parse_args(arguments)
    wanted = options.parts.split(",")
    if unknown := set(wanted) - set(names):
        parser.error(f"--parts: expected some of {', '.join(names)}, got {', '.join(sorted(unknown))}")
    if not options.minutes > 0:
        parser.error(f"--minutes: expected a number above 0, got {options.minutes}")
    if not torch.cuda.is_available():
        print("there is no CUDA device: nothing to measure")
        return 2

    machine = gpu_facts()
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    path = report_path(options.out, machine["device"], datetime.datetime.now(datetime.UTC))
    report: dict[str, Any] = {"machine": machine, "minutes": options.minutes, "quick": options.quick, "parts": {}}
    chosen = [part for part in (*parts(options.quick), *optional_parts()) if part.name in wanted]
    run_all(chosen, options.minutes, report, lambda: save_report(path, report))
    print(f"written: {path}\n{table(report)}")
    return 0 if all(result["passed"] for result in report["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
