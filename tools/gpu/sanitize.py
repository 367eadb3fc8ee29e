"""NVIDIA's compute-sanitizer over the kernel tests: reads and writes out of bounds, races, memory that nobody wrote.

Run: python -m tools.gpu.sanitize [--tools memcheck racecheck initcheck] [--minutes 9] [--out [FOLDER]]

    memcheck    accesses outside of an allocation or misaligned
    racecheck   shared memory that two threads of a block use without a barrier between them
    initcheck   device memory that is read before it was written

Each tool gets an equal share of the minutes and runs pytest in a process of its own, which begins no test when most of
its time has gone. Kernels are much slower under a tool, so not all tests may come to run; the result says how many did.
torch's caching allocator would hide what lies between two tensors, and the tests' guarded memory, which is written
before a kernel sees it, what no kernel writes: both are switched off for the run.

Not run on a GPU yet. Without one, or without compute-sanitizer (it comes with the CUDA toolkit), nothing is run and the
exit status is 2; 1: a tool reported errors or tests failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.measure import RESULTS, machine_facts, write_results

from .process import pytest_command, run_process

TOOLS = ("memcheck", "racecheck", "initcheck")
_ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "TAWIN_GUARDED_MEMORY": "0"}
_FOUND = 86  # the exit status that a tool is told to give where it found something


def find_sanitizer() -> str | None:
    """The program on the PATH or where the toolkit puts it."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{home}/bin")


def sanitizer_command(sanitizer: str, tool: str, tests: Sequence[str], limit: float) -> list[str]:
    return [
        sanitizer,
        "--tool",
        tool,
        "--target-processes",
        "all",
        "--error-exitcode",
        str(_FOUND),
        "--print-limit",
        "20",
        *pytest_command(*tests, limit=limit),
    ]


def read_summary(output: str) -> dict[str, Any]:
    """What the tool and pytest said at their ends: {"errors": 0, "tests": "12 passed in 3.4s"}; None where nothing."""
    errors = re.findall(r"========= (?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)", output)
    tests = re.findall(r"^(?:=+ )?(\d+ (?:passed|failed|skipped).*?in [\d.]+s.*?)(?: =+)?$", output, re.MULTILINE)
    return {
        "errors": sum(map(int, errors)) if errors else None,
        "tests": tests[-1] if tests else None,
    }


def run_tool(sanitizer: str, tool: str, tests: Sequence[str], limit: float) -> dict[str, Any]:
    """Its errors are a failure, and so is a tool that gave no summary at all."""
    command = sanitizer_command(sanitizer, tool, tests, limit)
    result = run_process(command, limit, keep_all=True, **_ENVIRONMENT)
    summary = read_summary(result["output"])
    passed = summary["errors"] == 0 and summary["tests"] is not None and "failed" not in summary["tests"]
    return {**result, **summary, "passed": passed, "output": result["output"][-20_000:]}


def run_tools(tools: Sequence[str], tests: Sequence[str], seconds: float) -> dict[str, Any]:
    """A part of tools.gpu.run. Without the sanitizer it fails, and says so."""
    sanitizer = find_sanitizer()
    if sanitizer is None:
        return {"passed": False, "summary": "compute-sanitizer was not found: not run"}
    results = {tool: run_tool(sanitizer, tool, tests, seconds / len(tools)) for tool in tools}
    summary = "; ".join(f"{tool}: {result['errors']} errors, {result['tests']}" for tool, result in results.items())
    return {"passed": all(result["passed"] for result in results.values()), "summary": summary, "tools": results}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.sanitize", description=__doc__.splitlines()[0])
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all tools together")
    parser.add_argument("--tests", nargs="+", default=["tests/kernels"], help="what pytest is given")
    parser.add_argument("--out", type=Path, nargs="?", const=RESULTS, help="write JSON there; alone: bench/results")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes: expected a number above 0, got {options.minutes}")
    if not torch.cuda.is_available():
        print("there is no CUDA device: nothing to run")
        return 2
    if find_sanitizer() is None:
        print("compute-sanitizer was not found on the PATH or in CUDA_HOME/bin: it comes with the CUDA toolkit")
        return 2
    result = run_tools(options.tools, options.tests, options.minutes * 60)
    print(result["summary"])
    if options.out is not None:
        figures = {"machine": machine_facts(torch.device("cuda")), **result}
        print(f"written: {write_results(figures, options.out, 'sanitize')}")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
