"""A run's folder: its config, its metrics line by line, its results. Knows files, not models.

    config.yaml     every option of the run
    metrics.jsonl   a line a training step or evaluation
    results.json    the final figures, written stage by stage
    catalog/        items, their tokens, their semantic ids
    checkpoints/    see checkpoint.py
    tensorboard/    see tracking.py

A folder that holds another run is never written into; every whole file is written beside its place and renamed. Of
several processes one writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .config import Config, differences, dump_yaml, load_yaml
from .tracking import NOT_TRACKED, Tracking, start_tracking


class RunFolderError(ValueError):
    """The folder cannot be used as asked; the message says why and what to do."""


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.writing")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
            raise RunFolderError(f"--out {path}: holds another run; pass --resume to go on with it, or another folder")
        if any(path.iterdir()):
            raise RunFolderError(f"--out {path}: expected a new or empty folder, got one with other files in it")

    @classmethod
    def create(cls, path: Path, config: Config) -> RunFolder:
        """Make the folder of a new run."""
        cls.check_new(path)
        path.mkdir(parents=True, exist_ok=True)
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

        Guards and watchdog may differ: what they stopped may go on with others. So may the tracker.
        """
        run = cls.open(path)
        found = differences(run.config, config)
        changed = [one for one in found if not one[0].startswith(("guards.", "watchdog.", "tracking."))]
        if changed:
            raise RunFolderError(
                f"--resume {path}: the run was started with another config: "
                + "; ".join(f"{name} was {old!r}, is now {new!r}" for name, old, new in changed)
            )
        return run

    @contextmanager
    def tracked(self, config: Config) -> Iterator[RunFolder]:
        """The same folder, what is logged there shown as `config.tracking` says meanwhile."""
        tracking = start_tracking(self.path, config) if self.writes else NOT_TRACKED
        try:
            yield replace(self, tracking=tracking)
        except BaseException:
            tracking.finish(failed=True)
            raise
        tracking.finish(failed=False)

    @property
    def config(self) -> Config:
        """The config that the run was started with."""
        return load_yaml(self.path / "config.yaml")

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
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.tracking.log(line)

    @property
    def metrics_size(self) -> int:
        """Bytes of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0

    def forget_metrics_after(self, size: int) -> None:
        """Cut metrics.jsonl to its first `size` bytes: the steps behind them will be done again."""
        if self.writes and self.metrics_size > size:
            os.truncate(self.path / "metrics.jsonl", size)

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
