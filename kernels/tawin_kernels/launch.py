"""How a Triton kernel is launched, on which kind of GPU it will run, and how to look at launches without one.

Every launch of the package goes through `launch`. On tensors of PyTorch's "meta" device, inside `recorded_launches`,
nothing runs and the launch is noted down with the block sizes that it would have had: that is what is compiled ahead
of time for GPUs that are not there. Knows nothing of any op.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch._C import _functorch
from triton import knobs

# Enough for every kernel that is no matrix product, and 16 warps of them fit a multiprocessor.
REGISTERS = 128
# What a thread can have. Said of an fp32 tile: left to itself the assembler of Triton 3.9 spills a few of its registers
# for one program more on a multiprocessor.
MOST_REGISTERS = 255

# Whether kernels were made for Triton's interpreter, which runs them on the CPU: decided when they are decorated.
INTERPRETED: bool = knobs.runtime.interpret


@dataclass(frozen=True)
class Target:
    """A kind of GPU: what block sizes are chosen by."""

    backend: Literal["cuda", "hip"]
    arch: str
    """NVIDIA: the compute capability without its point, "90". AMD: the architecture, "gfx942"."""

    @property
    def shared_memory(self) -> int:
        """Bytes of shared memory (LDS) that one program may have."""
        if self.backend == "hip":
            return 64 * 1024 if self.arch != "gfx950" else 160 * 1024
        known = {"80": 163, "87": 163, "90": 227, "100": 227, "103": 227, "110": 227}
        return known.get(self.arch, 99) * 1024  # consumer GPUs from 8.6 to 12.1


@dataclass(frozen=True)
class Launch:
    """One launch as it was asked for."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    def options(self, *, on_nvidia: bool) -> dict[str, int]:
        """What the compiler is told beside the arguments.

        A product and a sum are two instructions, each rounded, as Triton has it from 3.10 on. Where the compiler
        contracts them, a sum over lanes is fma(a, b, c) in one thread and fma(c, d, a) in another: copies of one sum
        differ in their last bits, and which of them is stored is the hardware's choice. A kernel may say tl.fma.
        """
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": False}
        if on_nvidia and self.max_registers is not None:
            options["maxnreg"] = self.max_registers
        return options


@dataclass
class _Recording:
    target: Target
    launches: list[Launch] = field(default_factory=list)


_recording: ContextVar[_Recording | None] = ContextVar("recording", default=None)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *,
    num_warps: int = 4,
    num_stages: int = 2,
    max_registers: int | None = None,
    **arguments: Any,
) -> None:
    """Run `kernel` on `grid`; arguments by name, constexprs among them. A grid with a zero is no work at all.

    max_registers: what a thread may have, on NVIDIA. Without it the assembler spills a register or two where that lets
    one more program onto a multiprocessor.
    """
    if 0 in grid:
        return
    asked = Launch(kernel, grid, arguments, num_warps, num_stages, max_registers)
    recording = _recording.get()
    if recording is not None:
        recording.launches.append(asked)
        return
    if _functorch.peek_interpreter_stack() is not None:
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor) and _functorch.is_functorch_wrapped_tensor(value):
                raise RuntimeError(
                    f"{name.removesuffix('_ptr')}: the Triton kernels cannot be called inside torch.func's transforms "
                    "(grad, vmap, ...); use impl='reference'"
                )
    device = next(value.device for value in arguments.values() if isinstance(value, torch.Tensor))
    options = asked.options(on_nvidia=device.type == "cuda" and torch.version.hip is None)
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):  # Triton launches on the current device, wherever the tensors are
            kernel[grid](**arguments, **options)
    else:
        kernel[grid](**arguments, **options)


@contextmanager
def recorded_launches(target: Target) -> Iterator[list[Launch]]:
    """Within it launches are written to the list that it gives, as for `target`, and nothing runs: use meta tensors."""
    recording = _Recording(target)
    token = _recording.set(recording)
    try:
        yield recording.launches
    finally:
        _recording.reset(token)


def is_recording() -> bool:
    """Whether launches are noted down instead of run."""
    return _recording.get() is not None


def target_of(device: torch.device) -> Target:
    """The GPU that kernels on `device` run on. The interpreter takes the block sizes of an H100."""
    recording = _recording.get()
    if recording is not None:
        return recording.target
    if device.type != "cuda":
        return Target("cuda", "90")
    return _cuda_target(device.index if device.index is not None else torch.cuda.current_device())


def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors (compute units) share the work of a persistent kernel."""
    if is_recording():
        return 132
    if device.type != "cuda":
        return 4  # the interpreter runs one program after another anyway
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _cuda_target(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        return Target("hip", properties.gcnArchName.split(":")[0])
    return Target("cuda", f"{properties.major}{properties.minor}")
