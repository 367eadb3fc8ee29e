"""Compiled kernels in one file: made on a machine without a GPU, put into Triton's cache on one that has it.

Triton finds a kernel by a hash of its own files, of the kernel's source, arguments and options, and of the assembler.
Wheels for two versions of Python differ in the first, and the cache holds absolute paths: both are made anew where the
file is unpacked. All else has to be the same; what is not is compiled as if there were no file.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.cache import _base32, triton_key

KEY = "rest_of_the_key"  # a file in a kernel's folder of the cache, written while it is compiled
_INDEX = "index.json"


@dataclass(frozen=True)
class Unpacked:
    """How many kernels and helpers (Triton 3.6 builds a launcher per signature) are now in the cache."""

    kernels: int
    helpers: int
    reason: str = ""
    """Why there are none."""


def backend_hash(architecture: int) -> str:
    """The assembler's version and the target."""
    return str(make_backend(GPUTarget("cuda", architecture, 32)).hash())


def pack(cache: Path, file: Path, architecture: int) -> tuple[int, int]:
    """All of a cache that was filled by `prewarm`: the numbers of kernels and of helpers."""
    entries: list[dict[str, Any]] = []
    helpers = 0
    with tarfile.open(file, "w:xz") as archive:
        for folder in sorted(path for path in cache.iterdir() if path.is_dir()):
            if (folder / KEY).exists():
                name = next((path.stem for path in folder.glob("*.cubin")), None)
                if name is None:
                    continue  # it does not compile
                number = str(len(entries))
                entries.append({"name": name, KEY: (folder / KEY).read_text()})
                for ending in ("cubin", "json"):
                    _add(archive, f"kernels/{number}/{name}.{ending}", (folder / f"{name}.{ending}").read_bytes())
            else:
                for library in folder.glob("*.so"):
                    _add(archive, f"helpers/{folder.name}/{library.name}", library.read_bytes())
                    helpers += 1
        index = {
            "triton": triton.__version__,
            "architecture": architecture,
            "backend": backend_hash(architecture),
            "kernels": entries,
        }
        _add(archive, _INDEX, json.dumps(index).encode())
    return len(entries), helpers


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def unpack(file: Path, cache: Path) -> Unpacked:
    """Into a cache that may have other kernels; nothing where Triton or its assembler is another."""
    with tarfile.open(file, "r:xz") as archive:
        contents = dict(_contents(archive))
    index = json.loads(contents[_INDEX])
    if index["triton"] != triton.__version__:
        return Unpacked(0, 0, f"made with triton {index['triton']}, here is {triton.__version__}")
    if index["backend"] != (here := backend_hash(index["architecture"])):
        return Unpacked(0, 0, f"made with {index['backend']!r}, here is {here!r}")
    for number, entry in enumerate(index["kernels"]):
        name = entry["name"]
        _install(
            cache,
            triton_key() + entry[KEY],
            name,
            contents[f"kernels/{number}/{name}.cubin"],
            json.loads(contents[f"kernels/{number}/{name}.json"]),
        )
    helpers = [name for name in contents if name.startswith("helpers/")]
    for helper in helpers:
        _, folder, library = Path(helper).parts
        _write(cache / folder / library, contents[helper])
    return Unpacked(len(index["kernels"]), len(helpers))


def _contents(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        if (data := archive.extractfile(member)) is not None:
            yield member.name, data.read()


def _install(cache: Path, key: str, name: str, cubin: bytes, metadata: dict[str, Any]) -> None:
    """A kernel as Triton's own cache has it: its files, and a group that names them, written last."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    folder = cache / _base32(digest)
    group = {f"{name}.{ending}": str(folder / f"{name}.{ending}") for ending in ("cubin", "json")}
    _write(folder / f"{name}.cubin", cubin)
    _write(folder / f"{name}.json", json.dumps({**metadata, "hash": digest}).encode())
    _write(folder / f"__grp__{name}.json", json.dumps({"child_paths": group}).encode())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_bytes(data)
    unfinished.replace(path)
