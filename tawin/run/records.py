"""What run folders hold so far, read back: config, metrics lines, results, and runs grouped by all but their seed.

Works on a run that is still being written. Knows nothing of figures or pages.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Config, TrackingConfig
from .folder import RunFolder


@dataclass(frozen=True)
class Run:
    """What a run folder holds so far."""

    name: str
    config: Config
    lines: list[dict[str, Any]]  # metrics.jsonl
    results: dict[str, Any]  # results.json, empty while there is none
    folder: RunFolder

    def curve(self, stage: str, key: str, part: str | None = None) -> dict[int, float]:
        """One figure of a stage by step; `part` "valid" takes it from the evaluation lines."""
        points = {}
        for line in self.lines:
            value = (line.get(part, {}) if part else line).get(key)
            # A step has a training line and perhaps an evaluation line: only one of them has the figure.
            if line["stage"] == stage and isinstance(value, int | float):
                points[line["step"]] = float(value)
        return dict(sorted(points.items()))


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed."""

    runs: list[Run]

    @property
    def label(self) -> str:
        others = len(self.runs) - 1
        return self.runs[0].name + (f" and {others} more seed{'s' * (others > 1)}" if others else "")

    @property
    def config(self) -> Config:
        return self.runs[0].config

    def values(self, *path: str) -> list[float]:
        """The number at `path` in results.json of every run that has it."""
        found = (look_up(run.results, *path) for run in self.runs)
        return [float(value) for value in found if isinstance(value, int | float)]


def look_up(values: Any, *path: str) -> Any:
    for name in path:
        values = values.get(name) if isinstance(values, dict) else None
    return values


def read_runs(folders: list[Path]) -> list[Group]:
    unique = len({folder.name for folder in folders}) == len(folders)
    members: dict[Config, list[Run]] = {}
    for folder in folders:
        run = RunFolder.open(folder)
        name = folder.name if unique else f"{folder.parent.name}/{folder.name}"
        # A folder's name may hold line breaks, and bytes that are not UTF-8.
        name = " ".join(name.encode("utf-8", "backslashreplace").decode("utf-8").split())
        alike = members.setdefault(dataclasses.replace(run.config, seed=0, tracking=TrackingConfig()), [])
        alike.append(Run(name, run.config, read_metrics(folder / "metrics.jsonl"), run.results, run))
    return [Group(runs) for runs in members.values()]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last one that is only half written yet is left out."""
    raw = path.read_bytes().splitlines() if path.exists() else []
    lines = []
    for number, line in enumerate(raw, start=1):
        try:
            values = json.loads(line)
            if not (isinstance(values["stage"], str) and isinstance(values["step"], int)):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            if number == len(raw):
                break
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with 'stage' and 'step', got {line[:80]!r}"
            ) from None
        lines.append(values)
    return lines
