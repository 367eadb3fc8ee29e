"""One call on a machine with a GPU, of nine minutes: is it right, and how fast is it?

Run: python -m tools.gpu --out FOLDER [--kernels FILE] [--minutes 9] [--sweep] [--parts ceilings,checks,...]
     python -m tools.gpu --out FOLDER --rehearse

The tests want torch, triton, pytest, pytest-xdist and hypothesis; the suites pytest-benchmark and transformers too,
training_step all of the extra `train` but tyro. A suite that cannot be imported is a failure of that part alone, a peer
that is not installed a skip.

The parts, each with its share of the minutes; what one does not use is left to those after it:
* ceilings: the bytes a second of a large copy and the bf16 FLOPs a second of a large matrix product;
* checks: tools.gpu.kernel_checks, every op against the reference op in fp64 at shapes of real work;
* log_prob, beam_step, training_step, grpo_loss: `pytest bench/bench_<name>.py` at the shapes that matter most, ours
  against the peers; with --sweep all suites, all their shapes (hours);
* tests: tests/kernels on several processes, few examples each, the same ones in every run;
* only where --parts names them: decode_attention, bench.bench_decode_attention, which has a table of its own; fuzz,
  tools.fuzz.run on the GPU; sanitize, compute-sanitizer over the kernel tests.
--kernels: a file of `tools.gpu.prewarm`, without which compiling takes most of the time. --rehearse: the same processes
on a machine without a GPU, kernels as compiled for sm_90 (tools.ptx_machine), tiny shapes; its times mean nothing.

All but the ceilings are processes of their own: what crashes or hangs takes nothing else with it. FOLDER gets three
files named by device and time (UTC), all written as results come, so that a call that is cut off leaves what it had:
.json, anew after every part; .jsonl, a line per test and benchmark; .log, the processes' output, the checks in it.
The exit status is 1 if a test or check failed, or a benchmark failed to agree or to run. A part that is out of time has
what it had by then; that is a failure of the checks and the tests, not of a benchmark. 2: nothing was run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from triton import knobs

from bench.measure import named_by_device, time_stamp

from .ceilings import ceilings, device_facts
from .packed import unpack
from .process import LAST_CHARACTERS, compiler_caches, pytest_command, run_process
from .sanitize import TOOLS, run_tools
from .session import lines_of
from .table import table

_PYTEST_STOPPED = 2
_REHEARSED = "sm_90"


@dataclass(frozen=True)
class Run:
    """What all parts share."""

    base: Path
    """Of the three files, without an ending."""
    rehearsal: bool = False
    sweep: bool = False

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.rehearsal else "cuda")

    def file(self, ending: str) -> Path:
        return self.base.with_name(f"{self.base.name}.{ending}")

    def pytest(self, *arguments: str, limit: float) -> dict[str, Any]:
        """A session, with the outcomes, benchmarks and compilations that it wrote down."""
        lines = self.file("jsonl")
        lines.touch()
        before = len(lines.read_text())
        command = [*pytest_command(*arguments, limit=limit), "-p", "tools.gpu.session", f"--lines={lines.resolve()}"]
        result = run_process(command, limit, log=self.file("log"))
        written = lines.read_text()[before:]
        tests = lines_of(written, "test")
        return {
            **result,
            "outcomes": dict(Counter(test["outcome"] for test in tests)),
            "failed": [test["test"] for test in tests if test["outcome"] == "failed"],
            "compiled": lines_of(written, "compiled"),
            "benchmarks": [line["benchmark"] for line in lines_of(written, "benchmark")],
        }


@dataclass(frozen=True)
class Part:
    """run: from seconds to results, among them "passed"; weight: its share of the time."""

    name: str
    weight: float
    run: Callable[[Run, float], dict[str, Any]]


@dataclass(frozen=True)
class Suite:
    """points: the shapes that are measured without --sweep; none: only with it."""

    name: str
    weight: float
    points: tuple[str, ...] = ()


SUITES = (
    Suite("log_prob", 3.0, ("distinct, 4,096 tokens", "distinct, head trained", "step")),
    Suite("beam_step", 3.0, ("base", "trie", "root")),
    Suite("training_step", 3.0, ("ids",)),
    Suite("grpo_loss", 2.0, ("step", "step, head trained")),
    Suite("beam_search", 1.0),
    Suite("advantage", 1.0),
)


def parts(sweep: bool) -> list[Part]:
    return [
        Part("ceilings", 0.5, lambda run, limit: ceilings(run.device, limit)),
        Part("checks", 3.0, run_checks),
        *(Part(suite.name, suite.weight, partial(run_suite, suite)) for suite in SUITES if sweep or suite.points),
        Part("tests", 5.0, run_tests),
    ]


def optional_parts() -> list[Part]:
    """What takes minutes by itself and is no measurement: run where it is asked for by name. Not run on a GPU yet."""
    return [
        Part("decode_attention", 1.0, run_decode_attention),
        Part("fuzz", 1.0, run_fuzz),
        Part("sanitize", 2.0, lambda _, limit: run_tools(TOOLS, ["tests/kernels"], limit)),
    ]


def run_tests(run: Run, limit: float) -> dict[str, Any]:
    workers = min(8, len(os.sched_getaffinity(0)))
    chosen = f"--compiled={_REHEARSED}" if run.rehearsal else "--few-examples"
    result = run.pytest("tests/kernels", f"--numprocesses={workers}", chosen, limit=limit)
    counts = [f"{count} {outcome}" for outcome, count in result["outcomes"].items()]
    cut = ["out of time"] if result["out_of_time"] or result["status"] == _PYTEST_STOPPED else []
    return {**result, "passed": result["status"] == 0, "summary": ", ".join([*counts, *cut, *result["failed"]])}


def run_checks(run: Run, limit: float) -> dict[str, Any]:
    rehearsed = ["--device", "cpu", "--size", "tiny", "--compiled", _REHEARSED] if run.rehearsal else []
    command = [sys.executable, "-m", "tools.gpu.kernel_checks", *rehearsed]
    return judged_checks(run_process(command, limit, keep_all=True, log=run.file("log")))


def judged_checks(result: dict[str, Any]) -> dict[str, Any]:
    """Of the whole output of tools.gpu.kernel_checks. Warnings and tracebacks stand between its lines of JSON."""
    checks = lines_of(result["output"], "check")
    rest = "\n".join(line for line in result["output"].splitlines() if not line.startswith('{"'))[-LAST_CHARACTERS:]
    failed = [check["check"] for check in checks if not check["passed"]]
    return {
        **result,
        "output": rest,
        "passed": result["status"] == 0,
        "summary": f"{len(checks) - len(failed)} of {len(checks)} passed{''.join(f'; failed: {f}' for f in failed)}",
        "compiled": lines_of(result["output"], "compiled"),
        "checks": checks,
    }


def run_suite(suite: Suite, run: Run, limit: float) -> dict[str, Any]:
    """Out of time it passes, with what was measured by then."""
    chosen = [] if run.sweep else [f"--points={point}" for point in suite.points]
    rehearsed = ["-p", "tools.gpu.rehearsal"] if run.rehearsal else []
    result = run.pytest(f"bench/bench_{suite.name}.py", *chosen, *rehearsed, limit=limit)
    return {
        **result,
        "passed": result["out_of_time"] or result["status"] in (0, _PYTEST_STOPPED),
        "summary": f"{len(result['benchmarks'])} measured; {_last_line(result['output'])}",
    }


def run_decode_attention(run: Run, limit: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.bench_decode_attention"]
    return _judged(run_process(command, limit, keep_all=True, log=run.file("log")))


def run_fuzz(run: Run, limit: float) -> dict[str, Any]:
    minutes = max(0.1, (limit - 30) / 60)  # what it takes to start
    command = [sys.executable, "-m", "tools.fuzz.run", "--device", "cuda", "--minutes", f"{minutes:.2f}"]
    result = _judged(run_process(command, limit, log=run.file("log")))
    lines = [line for line in result["output"].splitlines() if " cases, " in line]
    return {**result, "summary": "; ".join(lines) or result["summary"]}


def _judged(result: dict[str, Any]) -> dict[str, Any]:
    """A part that passes with exit status 0 and says in its last line what it came to."""
    return {**result, "passed": result["status"] == 0, "summary": _last_line(result["output"])}


def _last_line(output: str) -> str:
    return next((line.strip("= ") for line in reversed(output.splitlines()) if line.strip("= ")), "")


def run_part(part: Part, run: Run, limit: float) -> dict[str, Any]:
    """Its results; what it raises is one of them."""
    start = time.monotonic()
    try:
        result = part.run(run, limit)
    except Exception as error:  # a part that fails does not stop those after it
        result = {"passed": False, "summary": f"{type(error).__name__}: {error}"}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the next part is another process
    return {"seconds": round(time.monotonic() - start, 1), "limit": round(limit, 1), **result}


def run_all(chosen: Sequence[Part], run: Run, end: float, report: dict[str, Any]) -> None:
    """Run the parts one after another into report["parts"], saved after each; the time until `end` (of the monotonic
    clock) is shared by weight."""
    for number, part in enumerate(chosen):
        share = part.weight / sum(other.weight for other in chosen[number:])
        limit = max(1.0, (end - time.monotonic()) * share)
        print(f"{part.name}: up to {limit:.0f} s", flush=True)
        report["parts"][part.name] = result = run_part(part, run, limit)
        passed = "passed" if result["passed"] else "FAILED"
        print(f"{part.name}: {passed} in {result['seconds']} s. {result.get('summary', '')}", flush=True)
        if compiled := result.get("compiled"):
            seconds = sum(one["seconds"] for one in compiled)
            print(f"{part.name}: {len(compiled)} kernels were in no cache, {seconds:.0f} s of compiling", flush=True)
        save_report(run.file("json"), report)


def save_report(path: Path, report: dict[str, Any]) -> None:
    """Whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(report, indent=1) + "\n")
    unfinished.replace(path)


def base_path(folder: Path, device: str, now: datetime.datetime) -> Path:
    return folder / f"{named_by_device('gpu', device)}-{time_stamp(now)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    begin = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description=__doc__.splitlines()[0])
    usual = [part.name for part in parts(sweep=False)]
    names = [part.name for part in (*parts(sweep=True), *optional_parts())]
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the files go")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--kernels", type=Path, metavar="FILE", help="what tools.gpu.prewarm has compiled")
    parser.add_argument("--sweep", action="store_true", help="all suites, all their shapes")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, at tiny shapes")
    parser.add_argument("--parts", help=f"some of {','.join(names)}; by default {','.join(usual)}")
    options = parser.parse_args(arguments)
    every = [*parts(sweep=True), *optional_parts()]
    wanted = options.parts.split(",") if options.parts else [part.name for part in parts(options.sweep)]
    if unknown := set(wanted) - set(names):
        parser.error(f"--parts: expected some of {', '.join(names)}, got {', '.join(sorted(unknown))}")
    if not options.minutes > 0:
        parser.error(f"--minutes: expected a number above 0, got {options.minutes}")
    if options.kernels is not None and not options.kernels.is_file():
        parser.error(f"--kernels: there is no file {options.kernels}")
    if not torch.cuda.is_available() and not options.rehearse:
        print("there is no CUDA device: nothing to measure (--rehearse does without)")
        return 2

    device = torch.device("cpu" if options.rehearse else "cuda")
    machine = device_facts(device)
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"rehearsal on {machine['device']}" if options.rehearse else machine["device"]
    run = Run(base_path(options.out, name, datetime.datetime.now(datetime.UTC)), options.rehearse, options.sweep)
    report: dict[str, Any] = {"machine": machine, "rehearsal": run.rehearsal, "minutes": options.minutes, "parts": {}}
    if options.kernels is not None:
        os.environ.update(compiler_caches())
        report["kernels"] = asdict(unpack(options.kernels, Path(knobs.cache.dir)))
        print(f"kernels: {report['kernels']}", flush=True)
    run_all([part for part in every if part.name in wanted], run, begin + options.minutes * 60, report)
    print(f"written: {run.file('json')}\n{table(report)}")
    return 0 if all(result["passed"] for result in report["parts"].values()) else 1
