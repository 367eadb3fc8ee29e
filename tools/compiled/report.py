"""Every Triton kernel of tawin_kernels compiled for GPUs that are not there, with the block sizes of its launcher.

Run: python -m tools.compiled.report [--targets sm_80,sm_90,sm_100,gfx942] [--kernels PART_OF_A_NAME] [--json FILE]

The launches of `cases` are compiled as Triton's JIT would compile them, and a table a target says what the code
takes. The exit status is 1, with the reasons listed, where a kernel
* spills registers or has local memory (on AMD scalar registers may be kept in lanes of vector registers: reported, no
  failure);
* takes more shared memory, or on Blackwell more tensor memory, than there is;
* multiplies bf16 or fp16 matrices without the target's tensor-core instruction, or fp32 ones by one that rounds them;
* leaves the lanes of a warp with different bits of one sum (`copies`; NVIDIA);
* does not compile, or occurs in no case.
Nothing runs and nothing is timed: whether the code is fast is for a GPU to say. What Triton has in its cache is not
compiled again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tawin_kernels
import torch
import triton
from tawin_kernels.launch import INTERPRETED, Target, recorded_launches
from triton.runtime.jit import JITFunction

from .cases import Case, compile_cases
from .code import Code, Job, compiled, job_of

TARGETS = {
    "sm_80": Target("cuda", "80"),
    "sm_90": Target("cuda", "90"),
    "sm_100": Target("cuda", "100"),
    "gfx942": Target("hip", "gfx942"),
}


@dataclass(frozen=True)
class Row:
    """One compilation, and the cases that lead to it."""

    target: str
    job: Job
    cases: tuple[str, ...]
    code: Code | None
    """None where it does not compile."""
    failures: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "kernel": self.job.kernel,
            "blocks": self.job.blocks,
            "cases": self.cases,
            "code": None if self.code is None else asdict(self.code),
            "failures": self.failures,
        }


def package_kernels() -> set[str]:
    """The names of all kernels of the package: what is decorated with triton.jit and named ..._kernel."""
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(tawin_kernels.__path__, f"{tawin_kernels.__name__}.")
    ]
    functions = [value for module in modules for value in vars(module).values() if isinstance(value, JITFunction)]
    return {function.__name__ for function in functions if function.__name__.endswith("_kernel")}


def jobs_of(cases: Iterable[Case], target: Target, part_of_name: str = "") -> list[tuple[Job, tuple[str, ...]]]:
    """The distinct compilations that the cases need on a target, each with the cases that need it."""
    jobs: dict[tuple[str, str], Job] = {}
    labels: dict[tuple[str, str], dict[str, None]] = {}
    for case in cases:
        with recorded_launches(target) as launches:
            try:
                case.run()
            except Exception as error:
                error.add_note(f"in the case: {case.label}")
                raise
        for launch in launches:
            if part_of_name in launch.kernel.__name__:
                job = job_of(launch, target)
                jobs.setdefault(job.key, job)
                labels.setdefault(job.key, {})[case.label] = None
    return [(job, tuple(labels[key])) for key, job in jobs.items()]


def row_of(target: str, job: Job, cases: tuple[str, ...]) -> Row:
    try:
        code = compiled(job)
    except Exception as error:  # whatever a compiler throws is what the report is there to say
        # Triton's own errors show the source in between.
        message = str(error).strip().splitlines() or [""]
        reason = f"{message[0]} ... {message[-1]}" if len(message) > 1 else message[0]
        return Row(target, job, cases, None, (f"does not compile: {type(error).__name__}: {reason[:300]}",))
    return Row(target, job, cases, code, code.failures)


@contextmanager
def compilers_quiet() -> Iterator[Callable[[], list[str]]]:
    """Within it what compilers write to the standard error goes to a file: a failure prints whole modules.

    Gives a function that returns the distinct lines so far that name an error.
    """
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        before = os.dup(2)
        os.dup2(file.fileno(), 2)

        def errors() -> list[str]:
            file.seek(0)
            lines = file.read().decode(errors="replace").splitlines()
            return list(dict.fromkeys(line for line in lines if " error: " in line))

        try:
            yield errors
        finally:
            os.dup2(before, 2)
            os.close(before)


def table(rows: Sequence[Row]) -> str:
    """The rows of one target for people."""
    lines = [
        f"{'kernel':<26}{'blocks':<40}{'registers':>9}{'shared':>9}{'local':>7}{'spills':>8}  "
        f"{'matrix instructions':<30}case"
    ]
    for row in sorted(rows, key=lambda row: (row.job.kernel, row.cases)):
        more = f" (and {len(row.cases) - 1} more)" if len(row.cases) > 1 else ""
        case = row.cases[0] + more
        if row.code is None:
            lines.append(f"{row.job.kernel:<26}{row.job.blocks:<40}{'does not compile':<63}  {case}")
            continue
        code = row.code
        instructions = ", ".join(f"{count} {name}" for name, count in code.matrix_instructions.items())
        scalar = f"+{code.scalar_spills}s" if code.scalar_spills else ""
        lines.append(
            f"{row.job.kernel:<26}{row.job.blocks:<40}{code.registers:>9}{code.shared_memory:>9}{code.local_memory:>7}"
            f"{str(code.spills) + scalar:>8}  {instructions:<30}{case}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 all is well, 1 something failed, 2 nothing was compiled."""
    parser = argparse.ArgumentParser(prog="python -m tools.compiled.report", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default=",".join(TARGETS), help=f"some of {','.join(TARGETS)}")
    parser.add_argument("--kernels", default="", metavar="PART", help="only kernels whose name contains this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything there")
    options = parser.parse_args(arguments)
    targets = options.targets.split(",")
    if unknown := set(targets) - TARGETS.keys():
        parser.error(f"--targets: expected some of {', '.join(TARGETS)}, got {', '.join(sorted(unknown))}")
    if INTERPRETED:
        print("TRITON_INTERPRET is set: kernels were made for the interpreter, there is nothing to compile. Unset it.")
        return 2
    wanted = {name for name in package_kernels() if options.kernels in name}
    if not wanted:
        parser.error(f"--kernels: no kernel's name contains {options.kernels!r}")

    jobs = {name: jobs_of(compile_cases(), TARGETS[name], options.kernels) for name in targets}
    # Threads will do: the compilers leave Python's lock alone.
    with compilers_quiet() as errors_so_far, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        started = {name: [pool.submit(row_of, name, *work) for work in jobs[name]] for name in targets}
        rows_of = {name: [future.result() for future in futures] for name, futures in started.items()}
        compiler_errors = errors_so_far()

    failures = []
    for name, rows in rows_of.items():
        print(
            f"\n{name}: {len(rows)} compilations, triton {triton.__version__}, torch {torch.__version__}\n{table(rows)}"
        )
        failures += [f"{name}: {kernel}: no case launches it" for kernel in wanted - {row.job.kernel for row in rows}]
        for row in rows:
            failures += [f"{name}: {row.job.kernel} ({row.job.blocks}; {row.cases[0]}): {why}" for why in row.failures]
    if options.json is not None:
        figures = {
            "triton": triton.__version__,
            "torch": torch.__version__,
            "rows": [row.as_json() for rows in rows_of.values() for row in rows],
            "failures": failures,
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if compiler_errors:
        print("\n" + "\n".join(compiler_errors))
    print("\n" + "\n".join(failures or [f"{len(wanted)} kernels on {len(targets)} targets: nothing to complain about"]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
