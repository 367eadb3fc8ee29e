"""Every kernel of the package that takes a Python float, compiled for sm_90 as if the float came as fp64.

`python -m tests.tools.compiled.fp64_scalars` prints what went wrong by kernel, "" where nothing did, as JSON.
Inductor before torch 2.15 passes Python floats so. A process of its own, as Triton compiles nothing
after its interpreter was used.
"""

from __future__ import annotations

import json
import sys

import triton
from tawin_kernels.launch import Target, recorded_launches
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tools.compiled.cases import compile_cases
from tools.compiled.code import job_of
from tools.ptx_machine.compile import without_the_assembler

TARGET = Target("cuda", "90")


def main() -> None:
    found: dict[str, str] = {}
    for case in compile_cases():
        with recorded_launches(TARGET) as launches:
            case.run()
        for launch in launches:
            name = launch.kernel.__name__
            if name in found:
                continue
            job = job_of(launch, TARGET)
            floats = [key for key, value in job.source.signature.items() if value == "fp32"]
            if not floats:
                continue
            signature = {**job.source.signature, **dict.fromkeys(floats, "fp64")}
            source = ASTSource(job.source.fn, signature, job.source.constants, job.source.attrs)
            try:
                with without_the_assembler():
                    triton.compile(source, target=GPUTarget("cuda", 90, 32), options=job.options)
                found[name] = ""
            except Exception as error:  # whatever the compiler finds wrong is what is asked here
                found[name] = f"{type(error).__name__}: {error}"
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
