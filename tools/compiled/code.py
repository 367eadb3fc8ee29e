"""A launch compiled for a GPU that is not there: what its code takes of the GPU, and what is wrong with it.

A launch is specialised by Triton's own binder and compiled by Triton as its JIT would, then the machine code is read.
Knows nothing of any op. Nothing runs.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import triton
from tawin_kernels.launch import Launch, Target
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from .copies import unequal_copies

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_MATRIX_INSTRUCTION = re.compile(r"\b(HMMA|HGMMA|UTC[A-Z]*MMA)\b|\b(v_s?mfma_\w+)")
# Those that round fp32 operands. NVIDIA's tensor cores have no other; AMD's v_mfma_f32_*_f32 is full fp32.
_ROUNDING = re.compile(r"[A-Z]+|v_s?mfma_\w*(?:xf32|bf16|[^x]f16)\w*")
_SMALLEST_WARPGROUP_ROWS = 64  # fewer rows cannot use the warpgroup instructions of sm_90 and sm_100
_TENSOR_MEMORY_COLUMNS = 512


@dataclass(frozen=True)
class Job:
    """One compilation: a kernel specialised for the arguments of a launch."""

    kernel: str
    blocks: str
    source: ASTSource
    options: dict[str, Any]
    target: Target

    @property
    def key(self) -> tuple[str, str]:
        """The same for launches that share their code."""
        return self.source.hash(), str(self.options)


@dataclass(frozen=True)
class Dot:
    """A matrix product in the kernel: operands [rows, inner] and [inner, columns]."""

    rows: int
    inner: int
    dtype: str
    """As Triton writes it: bf16, f16, f32."""


@dataclass(frozen=True)
class Code:
    """What compiled code takes. Failures: why it should not be shipped."""

    registers: int
    """Of a thread; AMD: vector registers."""
    shared_memory: int
    """Bytes of a program."""
    tensor_memory: int
    """Columns of a program; Blackwell only."""
    local_memory: int
    """Bytes of a thread's stack (AMD: scratch)."""
    spills: int
    """NVIDIA: instructions that load or store local memory; AMD: vector registers spilled."""
    scalar_spills: int
    """AMD: scalar registers spilled, to lanes of vector registers."""
    dots: tuple[Dot, ...]
    matrix_instructions: dict[str, int]
    """How many of each kind stand in the code."""
    unequal_copies: tuple[str, ...] = ()
    """NVIDIA: instructions after which the lanes of a warp have different bits of one sum (see `copies`)."""
    failures: tuple[str, ...] = ()


def job_of(launch: Launch, target: Target) -> Job:
    """As the JIT specialises: pointers and ints by divisibility by 16; ints of 1, None and constexprs as constants."""
    kernel = launch.kernel
    backend = make_backend(_gpu(target))
    given = {**launch.arguments, **launch.options(on_nvidia=target.backend == "cuda")}
    bound, specialization, _ = create_function_from_signature(kernel.signature, kernel.params, backend)(**given)
    options, signature, values, attributes = kernel._pack_args(backend, given, bound, specialization, None)
    constants = [parameter.name for parameter in kernel.params if parameter.is_constexpr]
    ints = {name: value for name in constants if type(value := launch.arguments[name]) is int}
    sizes = [str(value) for name, value in ints.items() if name.startswith("BLOCK_")] or map(str, ints.values())
    return Job(
        kernel=kernel.__name__,
        blocks=f"{'x'.join(sizes) or '-'}, {launch.num_warps} warps, {launch.num_stages} stages",
        source=ASTSource(kernel, signature, values, attributes),
        options=options.__dict__,
        target=target,
    )


def compiled(job: Job) -> Code:
    """Compile it (or take it from Triton's cache), read the code and judge it."""
    binary = triton.compile(job.source, target=_gpu(job.target), options=job.options)
    read = _read_amd if job.target.backend == "hip" else _read_nvidia
    code = replace(
        read(binary),
        shared_memory=binary.metadata.shared,
        tensor_memory=getattr(binary.metadata, "tmem_size", None) or 0,
        dots=tuple(_dots(binary.asm["ttir"])),
        unequal_copies=tuple(unequal_copies(binary.asm["ptx"])) if "ptx" in binary.asm else (),
    )
    return replace(code, failures=tuple(failures_of(code, job.target)))


def _gpu(target: Target) -> GPUTarget:
    return GPUTarget("cuda", int(target.arch), 32) if target.backend == "cuda" else GPUTarget("hip", target.arch, 64)


def _dots(ttir: str) -> Iterator[Dot]:
    for rows, inner, dtype in re.findall(r"\btt\.dot .*: tensor<(\d+)x(\d+)x(\w+)> \*", ttir):
        yield Dot(int(rows), int(inner), dtype)


def _read_nvidia(binary: Any) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [str(_CUOBJDUMP), "--dump-resource-usage", "--dump-sass", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    return Code(
        registers=int(usage["REG"]),
        shared_memory=0,
        tensor_memory=0,
        local_memory=int(usage["STACK"]) + int(usage["LOCAL"]),
        spills=len(re.findall(r"\b(?:LDL|STL)\b", text)),
        scalar_spills=0,
        dots=(),
        matrix_instructions=_matrix_instructions(text),
    )


def _read_amd(binary: Any) -> Code:
    text = binary.asm["amdgcn"]
    usage = {name: int(value) for name, value in re.findall(r"^[\s-]*\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
    return Code(
        registers=usage["vgpr_count"],
        shared_memory=0,
        tensor_memory=0,
        local_memory=usage["private_segment_fixed_size"],
        spills=usage["vgpr_spill_count"],
        scalar_spills=usage["sgpr_spill_count"],
        dots=(),
        matrix_instructions=_matrix_instructions(text),
    )


def _matrix_instructions(text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for nvidia, amd in _MATRIX_INSTRUCTION.findall(text):
        counts[nvidia or amd] = counts.get(nvidia or amd, 0) + 1
    return dict(sorted(counts.items()))


def failures_of(code: Code, target: Target) -> Iterator[str]:
    """What is wrong with it, if anything."""
    if target.backend == "cuda" and (code.local_memory or code.spills):
        yield f"spills: {code.spills} LDL and STL instructions, {code.local_memory} bytes of local memory a thread"
    if target.backend == "hip" and code.spills:
        yield f"spills: {code.spills} vector registers, {code.local_memory} bytes of scratch memory a thread"
    if code.shared_memory > target.shared_memory:
        yield f"{code.shared_memory} bytes of shared memory, the target has {target.shared_memory}"
    if code.tensor_memory > _TENSOR_MEMORY_COLUMNS:
        yield f"{code.tensor_memory} columns of tensor memory, there are {_TENSOR_MEMORY_COLUMNS}"

    if code.unequal_copies:
        yield f"lanes have different bits of one sum ({len(code.unequal_copies)} times): {code.unequal_copies[0]}"

    found = ", ".join(code.matrix_instructions) or "none"
    rows_of_16_bits = [dot.rows for dot in code.dots if dot.dtype in ("bf16", "f16")]
    if rows_of_16_bits:
        wanted = _tensor_core_instruction(target, max(rows_of_16_bits))
        if not any(name.startswith(wanted) for name in code.matrix_instructions):
            yield f"a product of bf16 or fp16 matrices without {wanted} instructions (there are: {found})"
    elif code.dots and any(_ROUNDING.fullmatch(name) for name in code.matrix_instructions):
        yield f"a product of fp32 matrices by instructions that round them: {found}"


def _tensor_core_instruction(target: Target, rows: int) -> str:
    if target.backend == "hip":
        return "v_mfma"
    if rows < _SMALLEST_WARPGROUP_ROWS or target.arch.startswith(("8", "12")):
        return "HMMA"
    return "HGMMA" if target.arch.startswith("9") else "UTCHMMA"
