"""Makes tawin's ops on CPU tensors run as kernels compiled for a GPU, for the rest of the process.

`pytest --compiled sm_90` calls it before tawin_kernels is used.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import tawin_kernels
import torch
from tawin_kernels import arguments, launch

from .core.programs import Observer
from .launch import compiled_for

_on = ExitStack()
_target: str | None = None
_MULTIPROCESSORS = 4  # few: persistent kernels then have several pieces for each program


def compiled_target() -> str | None:
    """What kernels are compiled for; None where `switch_on` was not called."""
    return _target


def switch_on(
    target: str,
    observer: Observer | None = None,
    rewrite: Callable[[str], str] = lambda ptx: ptx,
    *,
    by_itself: bool = False,
) -> None:
    """target: sm_80, sm_90 or sm_100. impl="triton" then takes CPU tensors, of bfloat16 too.

    by_itself: impl="auto" means the kernels, as on a GPU.
    """
    global _target
    if launch.INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set: kernels were made for the interpreter. Unset it.")
    _on.enter_context(compiled_for(target, observer, rewrite))
    gpu = launch.Target("cuda", target.removeprefix("sm_"))
    runs_triton, target_of, multiprocessors = arguments.runs_triton, launch.target_of, launch.multiprocessors

    def is_here(device: torch.device) -> bool:
        return device.type == "cpu" and not launch.is_recording()

    def runs_triton_here(op: str, impl: str, tensor: torch.Tensor, **_: Any) -> bool:
        """Without the interpreter's fault with bf16."""
        if by_itself and impl == "auto" and tensor.dtype != torch.float64:
            impl = "triton"
        return runs_triton(op, impl, tensor)

    def target_here(device: torch.device) -> launch.Target:
        return gpu if is_here(device) else target_of(device)

    def multiprocessors_here(device: torch.device) -> int:
        return _MULTIPROCESSORS if is_here(device) else multiprocessors(device)

    replacements = [
        (runs_triton, runs_triton_here),
        (target_of, target_here),
        (multiprocessors, multiprocessors_here),
    ]
    for module in _package_modules():
        for name, value in list(vars(module).items()):
            for original, replacement in replacements:
                if value is original:
                    setattr(module, name, replacement)
    launch.INTERPRETED = arguments.INTERPRETED = True  # which is what lets CPU tensors through
    _target = target


def _package_modules() -> list[Any]:
    found = pkgutil.walk_packages(tawin_kernels.__path__, f"{tawin_kernels.__name__}.")
    return [tawin_kernels, *(importlib.import_module(module.name) for module in found)]
