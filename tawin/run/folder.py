"""A run's folder: its config, its metrics line by line, its results. Knows files, not models.

    config.yaml     every option of the run
    metrics.jsonl   a line a training step or evaluation
    results.json    the final figures, written stage by stage
    ranks-STAGE.safetensors   where each user's target stood: what the final figures are means of
    catalog/        items, their tokens, their semantic ids
    checkpoints/    see checkpoint.py
    tensorboard/    see tracking.py
    .lock           held by the process that trains, see lock.py

A folder that holds another run is never written into; every whole file is written beside its place and renamed, so that
it can be read at any time. metrics.jsonl grows by a line at a time: its last line may be torn by a crash or half there
for a reader, and is cut off when the run goes on. Of several processes one writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file, save

from ..config import Config
from ..config.files import differences_of_run, dump_yaml, load_yaml
from .atomic import WriteError, clean_leftovers, sync_file, write_atomically
from .lock import NAME as LOCK
from .lock import in_use_message, is_in_use
from .tracking import NOT_TRACKED, Tracking, start_tracking


class RunFolderError(ValueError):
    """The folder cannot be used as asked; the message says why and what to do."""


@dataclass(frozen=True)
class RanksByUser:
    """Where the targets of some users stood in one evaluation."""

    user_ids: np.ndarray
    """int64 [N]"""
    ranks: np.ndarray
    """int64 [N], zero-based, -1 = not found."""


@dataclass(frozen=True)
class RunFolder:
    """An existing run folder."""

    path: Path
    writes: bool = True
    """False in all processes but the first: what is logged or added there is left to that one."""
    tracking: Tracking = NOT_TRACKED
    """Who is told what is logged."""

    @staticmethod
    def check_new(path: Path) -> None:
        """Refuse a path that cannot become a new run: another run, or a folder or file with anything in it."""
        if not path.exists():
            return
        if not path.is_dir():
            raise RunFolderError(f"--out {path}: expected a folder, got a file")
        if (path / "config.yaml").exists():
            if is_in_use(path):
                raise RunFolderError(in_use_message(path))
            raise RunFolderError(f"--out {path}: holds another run; pass --resume to go on with it, or another folder")
        if any(found.name not in (LOCK, ".config.yaml.writing") for found in path.iterdir()):  # what a crash leaves
            raise RunFolderError(f"--out {path}: expected a new or empty folder, got one with other files in it")

    @classmethod
    def create(cls, path: Path, config: Config) -> RunFolder:
        """Make the folder of a new run."""
        cls.check_new(path)
        path.mkdir(parents=True, exist_ok=True)
        if config.data is not None:  # where it is, wherever the run is gone on with or evaluated
            config = replace(config, data=str(Path(config.data).absolute()))
        write_atomically(path / "config.yaml", dump_yaml(config))
        (path / "checkpoints").mkdir()
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run, by its folder."""
        if not (path / "config.yaml").is_file():
            raise RunFolderError(f"{path}: expected a run folder (one with a config.yaml), found none")
        return cls(path)

    @classmethod
    def resume(cls, path: Path, config: Config) -> RunFolder:
        """An existing run that is to go on with the same config; the fields that differ are named.

        Guards and watchdog may differ: what they stopped may go on with others. So may the tracker, how often states
        are saved and how many are kept, and where the data is. What a crash has left half written is removed.
        """
        run = cls.open(path)
        may_differ = ("guards.", "watchdog.", "tracking.", "checkpoints.")
        changed = [one for one in differences_of_run(path / "config.yaml", config) if not one[0].startswith(may_differ)]
        # Data may have moved: whoever loads it compares what is in it.
        changed = [(name, *values) for name, *values in changed if name != "data" or None in values]
        if changed:
            raise RunFolderError(
                f"--resume {path}: the run was started with another config: "
                + "; ".join(f"{name} was {old!r}, is now {new!r}" for name, old, new in changed)
            )
        clean_leftovers(run.path)
        clean_leftovers(run.checkpoints)
        return run

    @contextmanager
    def tracked(self, config: Config) -> Iterator[RunFolder]:
        """The same folder, what is logged there shown as `config.tracking` says meanwhile."""
        tracking = start_tracking(self.path, config) if self.writes else NOT_TRACKED
        try:
            yield replace(self, tracking=tracking)
        except BaseException:
            with suppress(OSError):  # a full disk is what has ended it, perhaps
                tracking.finish(failed=True)
            raise
        tracking.finish(failed=False)

    @property
    def config(self) -> Config:
        """The config that the run was started with."""
        return load_yaml(self.path / "config.yaml")

    @property
    def config_digest(self) -> str:
        """SHA-256 of the options in config.yaml, however they are written down."""
        options = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()

    @property
    def catalog(self) -> Path:
        return self.path / "catalog"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        if not self.writes:
            return
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise WriteError(f"{path}: could not be written: {error}") from error
        self.tracking.log(line)

    def sync_metrics(self) -> None:
        """Have the system put metrics.jsonl on the disk: a state counts on the lines so far."""
        path = self.path / "metrics.jsonl"
        if self.writes and path.exists():
            sync_file(path)

    @property
    def metrics_size(self) -> int:
        """Bytes of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def forget_metrics_after(self, size: int) -> None:
        """Cut metrics.jsonl to its first `size` bytes: the steps behind them will be done again.

        A file that is shorter has lost lines, which takes no crash but another hand: it is kept up to its last whole
        line, with a warning.
        """
        found = self.metrics_size
        if not self.writes or found == size:
            return
        path = self.path / "metrics.jsonl"
        if found < size:
            print(
                f"warning: {path}: has {found:,} bytes, the state counts on {size:,}: lines are missing in it; the "
                "training itself is not touched by that",
                file=sys.stderr,
            )
            size = path.read_bytes().rfind(b"\n") + 1 if found else 0
        if found > size:
            os.truncate(path, size)
            sync_file(path)

    @property
    def results(self) -> dict[str, Any]:
        """What results.json holds so far."""
        path = self.path / "results.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def add_results(self, **parts: Any) -> dict[str, Any]:
        """Merge parts into results.json; returns what it holds then."""
        if not self.writes:
            return self.results
        results = {**self.results, **parts}
        write_atomically(self.path / "results.json", json.dumps(results, indent=2) + "\n")
        return results

    def save_ranks(self, stage: str, parts: dict[str, RanksByUser]) -> None:
        """Keep the ranks of a stage's best model, part ("valid", "test") by part."""
        if not self.writes:
            return
        tensors: dict[str, np.ndarray] = {}
        for part, found in parts.items():
            tensors |= {f"{part}.user_ids": found.user_ids, f"{part}.ranks": found.ranks}
        write_atomically(self.path / f"ranks-{stage}.safetensors", save(tensors))

    def copy_ranks(self, stage: str, to: str) -> None:
        """The ranks of a stage whose best model is another stage's too; nothing where none were kept."""
        path = self.path / f"ranks-{stage}.safetensors"
        if self.writes and path.exists():
            write_atomically(self.path / f"ranks-{to}.safetensors", path.read_bytes())

    def ranks(self, stage: str, part: str) -> RanksByUser | None:
        """The ranks of a stage's best model; None where it has not been evaluated yet, or before ranks were kept."""
        path = self.path / f"ranks-{stage}.safetensors"
        if not path.exists():
            return None
        tensors = load_file(path)
        if f"{part}.ranks" not in tensors:  # everything was for training
            return None
        return RanksByUser(tensors[f"{part}.user_ids"], tensors[f"{part}.ranks"])
