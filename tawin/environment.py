"""What is installed: the lines of `tawin --version --env`, and the message of a missing extra.

Imports nothing of the trainer's: it is what runs where that is missing.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version

_OURS = ("tawin", "tawin_kernels")


def install(extra: str) -> str:
    """The command that brings an extra."""
    return f"pip install 'tawin[{extra}]'"


def missing_extra(error: ModuleNotFoundError, extra: str) -> str | None:
    """One line that names what to install; None where the module that is missing is one of ours, which is a fault."""
    package = (error.name or "").split(".")[0]
    return None if package in ("", *_OURS) else f"{package} is not installed: {install(extra)}"


@contextmanager
def named_extra(extra: str) -> Iterator[None]:
    """Ends the process with that line where an import within fails for a package that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        line = missing_extra(error, extra)
        if line is None:
            raise
        sys.exit(f"error: {line}")


def describe() -> str:
    """Versions of Python, the system and all dependencies, the GPUs, and what each extra still lacks."""
    lines = [f"python {platform.python_version()}, {platform.platform()}", *_gpus()]
    lacking: dict[str, list[str]] = {}
    shown = set()
    for name, extra in _requirements():
        found = _installed(name)
        if found is None:
            lacking.setdefault(extra, []).append(name)
        elif name not in shown:
            lines.append(f"{name} {found}")
            shown.add(name)
    lines += [f"missing: {', '.join(names)}: {install(extra)}" for extra, names in lacking.items()]
    return "\n".join(lines)


def _requirements() -> list[tuple[str, str]]:
    """Each dependency's name and the extra that it belongs to ("" for none), without those of tests and tools."""
    found = []
    for line in requires("tawin") or []:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        of = extra.group(1) if extra else ""
        if name and name.group() != "tawin" and of in ("", "train", "trl", "verl", "flash", "eight-bit"):
            found.append((name.group(), of))
    return found


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    """A line per GPU, and the CUDA or ROCm that torch was built for."""
    try:
        import torch
    except ImportError as error:
        return [f"torch cannot be imported: {error}"]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    if not (torch.version.cuda or torch.version.hip):
        build = "CPU alone"
    lines = [f"torch is built for: {build}"]
    if not torch.cuda.is_available():
        return [*lines, "GPU: none that torch can use"]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = device.total_memory / 2**30
        lines.append(f"GPU {index}: {device.name}, {memory:.0f} GiB, compute capability {device.major}.{device.minor}")
    return lines
