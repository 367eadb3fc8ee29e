"""A Triton kernel compiled to PTX for a GPU that is not there, as Triton's JIT would compile it for these arguments.

The assembler (ptxas) is left out. What is compiled lies in Triton's cache, under keys of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from . import instructions  # noqa: F401  fills the table
from .core.parse import parse
from .core.translate import Translated, translate

TARGETS = {f"sm_{arch}": GPUTarget("cuda", arch, 32) for arch in (80, 90, 100)}
_KEY = "ptx without a cubin"


@dataclass(frozen=True)
class Argument:
    """What a kernel is given, as Triton sees it."""

    name: str
    type: str
    """Triton's: "*bf16", "i32", "fp32"."""
    value: Any


@dataclass(frozen=True)
class Compiled:
    """Code for one specialisation of a kernel."""

    ptx: str
    num_warps: int
    shared: int
    """Bytes of dynamic shared memory of a program."""
    scratch: int
    """Bytes of global scratch memory of a program."""


_compiled: dict[tuple[JITFunction[Any], GPUTarget, str], Compiled] = {}


def compiled(kernel: JITFunction[Any], target: GPUTarget, given: dict[str, Any]) -> tuple[Compiled, list[Argument]]:
    """given: arguments and options (num_warps, ...) by name. The arguments that remain at run time come back."""
    backend = make_backend(target)
    bound, specialization, _ = _binder(kernel, target)(**given)
    options, signature, values, attributes = kernel._pack_args(backend, given, bound, specialization, None)
    key = kernel, target, f"{specialization} {options}"
    if key not in _compiled:
        source = ASTSource(kernel, signature, values, attributes)
        with without_the_assembler():
            binary = triton.compile(source, target=target, options=options.__dict__)
        metadata = binary.metadata
        scratch = getattr(metadata, "global_scratch_size", 0) or 0
        _compiled[key] = Compiled(binary.asm["ptx"], metadata.num_warps, metadata.shared, scratch)
    arguments = [Argument(name, type, bound[name]) for name, type in signature.items() if type != "constexpr"]
    return _compiled[key], arguments


@cache
def translated(ptx: str) -> Translated:
    """Code that threads can run."""
    return translate(parse(ptx))


@cache
def _binder(kernel: JITFunction[Any], target: GPUTarget) -> Any:
    return create_function_from_signature(kernel.signature, kernel.params, make_backend(target))


@contextmanager
def without_the_assembler() -> Iterator[None]:
    def hook(*stages: Any) -> tuple[str, str] | None:
        """Without arguments: what this adds to the key of the cache. With them: changes the compiler's stages."""
        if not stages:
            return _KEY, _KEY
        stages[1]["cubin"] = lambda source, metadata: b""
        return None

    before = knobs.runtime.add_stages_inspection_hook
    knobs.runtime.add_stages_inspection_hook = hook
    try:
        yield
    finally:
        knobs.runtime.add_stages_inspection_hook = before
