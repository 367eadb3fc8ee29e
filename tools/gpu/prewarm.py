"""What a GPU run will want compiled, compiled here and packed into one file, as minutes on a GPU are few.

Run: python -m tools.gpu.prewarm --out kernels.tar.xz [--no-tests]

Use the GPU machine's Triton and, with Triton 3.6, its Python (3.12 for 3.12): that Triton also builds a C module per
signature. Kernels are those of the compile report, of the benchmarks' and checks' shapes, and of the tests, which run
as compiled (tools.ptx_machine). `python -m tools.gpu --kernels kernels.tar.xz` unpacks them there and says what was
compiled all the same.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from tawin_kernels.launch import INTERPRETED, Target
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver
from triton.compiler import compiler
from triton.runtime import build
from triton.runtime.cache import _base32, triton_key

from ..compiled.cases import compile_cases, gpu_cases
from ..compiled.report import jobs_of
from ..ptx_machine import compile as machine
from .packed import KEY, pack
from .process import ROOT

_TARGET, _GPU = Target("cuda", "90"), GPUTarget("cuda", 90, 32)
_session = ExitStack()


@contextmanager
def keeping_keys() -> Iterator[None]:
    """Within it whatever Triton compiles for NVIDIA leaves the rest of its key in its folder of the cache."""
    key_of, made = compiler.get_cache_key, compiler.CompiledKernel.__init__

    def kept_key(*arguments: Any, **named: Any) -> str:
        key: str = key_of(*arguments, **named)
        folder = Path(knobs.cache.dir) / _base32(hashlib.sha256(key.encode()).hexdigest())
        folder.mkdir(parents=True, exist_ok=True)
        (folder / KEY).write_text(key.removeprefix(triton_key()))
        return key

    def with_launcher(kernel: Any, source: Any, *rest: Any) -> None:
        made(kernel, source, *rest)
        if triton.__version__ < "3.7":
            driver.CudaLauncher(source, kernel.metadata)

    compiler.get_cache_key, compiler.CompiledKernel.__init__ = kept_key, with_launcher
    try:
        with without_the_driver():
            yield
    finally:
        compiler.get_cache_key, compiler.CompiledKernel.__init__ = key_of, made


@contextmanager
def without_the_driver() -> Iterator[None]:
    """Triton's C modules are built against a libcuda with nothing in it, and not loaded."""
    load = build._load_module_from_path
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libcuda.so.1"
        command = ["gcc", "-shared", "-x", "c", os.devnull, "-Wl,-soname,libcuda.so.1", "-o", str(library)]
        subprocess.run(command, check=True)
        driver.library_dirs.cache_clear()
        driver.libcuda_dirs.cache_clear()
        before, knobs.nvidia.libcuda_path = knobs.nvidia.libcuda_path, folder
        build._load_module_from_path = lambda name, path: SimpleNamespace(launch=None)
        try:
            yield
        finally:
            knobs.nvidia.libcuda_path, build._load_module_from_path = before, load


def build_driver() -> None:
    """The C module that every process loads first."""
    with without_the_driver():
        build.compile_module_from_src(
            src=(Path(driver.__file__).parent / "driver.c").read_text(),
            name="cuda_utils",
            library_dirs=driver.library_dirs(),
            include_dirs=driver.include_dirs,
            libraries=driver.libraries,
        )


def compile_shapes() -> int:
    """The launches of the compile report and of `gpu_cases`; returns how many compilations there are."""
    jobs = jobs_of([*compile_cases(), *gpu_cases()], _TARGET)
    with keeping_keys():
        for job, _ in jobs:
            triton.compile(job.source, target=_GPU, options=job.options)
    return len(jobs)


def pytest_configure() -> None:
    """As a plugin: what the tests compile is assembled, and its keys are kept."""
    _session.enter_context(keeping_keys())
    machine.without_the_assembler = nullcontext  # type: ignore[assignment]


def run_tests() -> int:
    """The kernels' tests as compiled, in a process of their own; its exit status."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", __spec__.name, "tests/kernels"]
    return subprocess.run([*command, "--compiled", f"sm_{_TARGET.arch}"], cwd=ROOT).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 all is well; 1 a test failed, what was compiled is packed all the same; 2 nothing is done."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.prewarm", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="kernels.tar.xz, say")
    parser.add_argument("--no-tests", action="store_true", help="only what benchmarks and checks want")
    options = parser.parse_args(arguments)
    if options.out.exists():
        parser.error(f"--out: {options.out} is there already")
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set: kernels were made for the interpreter. Unset it.")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        print(f"triton {triton.__version__}, python {platform.python_version()}, torch {torch.__version__}")
        print(f"{compile_shapes()} compilations of shapes", flush=True)
        status = 0 if options.no_tests else run_tests()
        build_driver()
        kernels, helpers = pack(Path(cache), options.out, _GPU.arch)
    size = options.out.stat().st_size / 2**20
    print(f"{options.out}: {kernels} kernels, {helpers} C modules, {size:.1f} MiB")
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
