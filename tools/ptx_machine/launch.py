"""Launches of compiled kernels on CPU tensors: `compiled_for` puts the machine in the place of Triton's launcher.

    with compiled_for("sm_90"):
        kernel[grid](x, out, n, BLOCK=128, num_warps=4)

runs what Triton compiles for sm_90 and writes into `out`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from .compile import TARGETS, Argument, Compiled, compiled, translated
from .core.programs import Launch, Observer, Programs
from .core.threads import run
from .core.values import WIDTH, Fault
from .memory.global_memory import Extent, GlobalMemory

# Programs run side by side up to so many threads: numpy works best on arrays that fit a cache.
THREADS_AT_ONCE = 8192


@contextmanager
def compiled_for(
    target: str, observer: Observer | None = None, rewrite: Callable[[str], str] = lambda ptx: ptx
) -> Iterator[None]:
    """Within it every launch of a Triton kernel runs here, compiled for `target` (sm_80, sm_90, sm_100).

    Kernels have to be made by triton.jit without TRITON_INTERPRET. Tensors are on the CPU. rewrite: what becomes of the
    PTX before it is run.
    """
    if target not in TARGETS:
        raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")
    gpu, watching = TARGETS[target], observer or Observer()

    def launched(kernel: JITFunction[Any], *positional: Any, grid: Any, warmup: bool, **named: Any) -> None:
        given = {**dict(zip(kernel.arg_names, positional, strict=False)), **named}
        binary, arguments = compiled(kernel, gpu, given)
        programs = grid(given) if callable(grid) else grid
        execute(replace(binary, ptx=rewrite(binary.ptx)), arguments, programs, watching)

    before = JITFunction.run
    JITFunction.run = launched
    try:
        yield
    finally:
        JITFunction.run = before


def execute(
    binary: Compiled,
    arguments: Sequence[Argument],
    grid: Sequence[int],
    observer: Observer,
    numbers: Sequence[range] | None = None,
) -> None:
    """numbers: which programs to run, by default all of the grid."""
    code = translated(binary.ptx)
    x, y, z = (*grid, 1, 1)[:3]
    scratch = torch.zeros(max(1, binary.scratch * x * y * z), dtype=torch.uint8)
    given = [
        *arguments,
        Argument("scratch", "*u8", scratch if binary.scratch else None),
        Argument("profile", "*u8", None),
    ]
    launch = Launch(
        kernel=code,
        grid=(x, y, z),
        num_warps=binary.num_warps,
        shared=binary.shared,
        parameters={
            name: _bytes_of(type, argument)
            for (type, name), argument in zip(code.parameters, given[: len(code.parameters)], strict=True)
        },
        global_memory=GlobalMemory(
            [_extent(argument) for argument in given if isinstance(argument.value, torch.Tensor)]
        ),
        observer=observer,
    )
    at_once = max(1, THREADS_AT_ONCE // (32 * binary.num_warps))
    for chosen in numbers or [range(x * y * z)]:
        for first in range(chosen.start, chosen.stop, at_once):
            programs = Programs(launch, range(first, min(first + at_once, chosen.stop)))
            run(code, programs)


def _bytes_of(type: str, argument: Argument) -> bytes:
    """A kernel parameter of a PTX type."""
    value = argument.value
    if argument.type.startswith("*"):
        return struct.pack("<Q", 0 if value is None else value.data_ptr())
    if argument.type in ("fp32", "fp64"):
        return struct.pack("<f" if argument.type == "fp32" else "<d", float(value))
    if argument.type[0] not in "iu":
        raise Fault(f"argument {argument.name}: type {argument.type} not known")
    width = WIDTH[type]
    return (int(value) % 2**width).to_bytes(width // 8, "little")


def _extent(argument: Argument) -> Extent:
    tensor: torch.Tensor = argument.value
    if tensor.device.type != "cpu":
        raise ValueError(f"{argument.name}: expected a CPU tensor, got one on {tensor.device}")
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    elements = last + 1 if math.prod(tensor.shape) else 0
    return Extent(argument.name, tensor.data_ptr(), elements * tensor.element_size(), tensor.element_size())
