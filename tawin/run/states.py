"""The training states of a run: where each lies, which is the newest whole one, how many are kept.

    checkpoints/state-sft-000120/    what --resume goes on from, written after step 120 of SFT
        manifest.json                bytes and SHA-256 of every other file in it
        state.json                   progress, schedule, the numbers of the optimizer, the digest of the run's config
        weights.safetensors          optimizer.safetensors
    checkpoints/state/               the only one of earlier versions, without a manifest: still gone on with

A state is used only if every file is as the manifest says. A damaged one is set aside, never deleted, and the one
before it is taken; where no whole one is left, that is an error. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .atomic import sync_folder

MANIFEST = "manifest.json"
_EARLIER = "state"  # the folder of earlier versions
_NAME = re.compile(r"state(?:-(.+)-(\d+))?")


class StateError(ValueError):
    """The run cannot go on from its states; the message says why and what to do."""


def state_folder(checkpoints: Path, stage: str, step: int) -> Path:
    """Where the state after a step of a stage lies."""
    return checkpoints / f"state-{stage}-{step:06d}"


def states(checkpoints: Path) -> list[Path]:
    """All states, oldest first: SFT comes before any other stage, and an earlier version's before all."""
    named = [(match, path) for path in checkpoints.glob("state*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(named, key=lambda pair: _order(pair[0]))]


def _order(name: re.Match[str]) -> tuple[int, int]:
    stage, step = name.groups()
    return (-1, 0) if stage is None else (int(stage != "sft"), int(step))


def write_manifest(folder: Path) -> None:
    """Note what every file of a state has to be."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with a state, None where it is whole. Looked at once a process, unless a file changes."""
    stamps = tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir()))
    return _damage(folder, stamps)


@lru_cache(maxsize=16)
def _damage(folder: Path, _stamps: tuple[tuple[str, int, int], ...]) -> str | None:
    if folder.name == _EARLIER and not (folder / MANIFEST).exists():
        return _damage_of_earlier(folder)
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        wanted = {str(name): (int(file["bytes"]), str(file["sha256"])) for name, file in files.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not what was written"
    for name, (size, digest) in wanted.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes, {size:,} were written"
        if _sha256(path) != digest:
            return f"{name} is not what was written (SHA-256)"
    return None


def _damage_of_earlier(folder: Path) -> str | None:
    """As far as it can be told without a manifest: the tensors are all there, the JSON can be read."""
    try:
        json.loads((folder / "state.json").read_text(encoding="utf-8"))
        for name in ("weights.safetensors", "optimizer.safetensors"):
            with safe_open(folder / name, "pt"):
                pass
    except (OSError, ValueError, SafetensorError) as error:
        return str(error)
    return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def newest_whole(checkpoints: Path, config_digest: str) -> Path | None:
    """The newest whole state, or None where there is none of any kind yet.

    Damaged ones that are newer are renamed to "damaged-...", and a warning says so. To be called by one process, which
    trains in this run.

    Raises:
        StateError: there are states but no whole one (nothing is renamed then), or it belongs to another config.
    """
    found = list(reversed(states(checkpoints)))
    damaged: list[tuple[Path, str]] = []
    for folder in found:
        problem = damage(folder)
        if problem is None:
            _require_config(folder, config_digest)
            for other, reason in damaged:
                _set_aside(other, reason, folder)
            return folder
        damaged.append((folder, problem))
    if not damaged:
        return None
    reasons = "; ".join(f"{folder.name}: {problem}" for folder, problem in damaged)
    raise StateError(
        f"{checkpoints}: no whole state to go on from ({reasons}). Nothing was changed: put a copy back, or train anew "
        "with another --out; the best models of the stages so far lie beside it"
    )


def _require_config(folder: Path, config_digest: str) -> None:
    digest = json.loads((folder / "state.json").read_text(encoding="utf-8")).get("config")
    if digest is not None and digest != config_digest:
        raise StateError(
            f"{folder}: expected a state of this run's config, got one of another: config.yaml was changed, or the "
            "state comes from another run. Put config.yaml back as it was, or train with another --out"
        )


def _set_aside(folder: Path, reason: str, instead: Path) -> None:
    name, tries = f"damaged-{folder.name}", 1
    while (folder.parent / name).exists():
        tries += 1
        name = f"damaged-{folder.name}-{tries}"
    folder.rename(folder.parent / name)
    sync_folder(folder.parent)
    print(
        f"warning: {folder} is damaged: {reason}. It is now called {name}, and training goes on from "
        f"{instead.name}: the steps since then are done again",
        file=sys.stderr,
        flush=True,
    )


def keep_newest(checkpoints: Path, count: int) -> None:
    """Remove all states but the `count` newest ones."""
    for folder in states(checkpoints)[:-count]:
        gone = folder.with_name(f".{folder.name}.writing")  # no half state under a state's name if this is cut off
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
