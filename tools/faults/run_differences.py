"""In what a run differs from one of the same options that was never killed, and what in it is damaged.

Compared are metrics.jsonl, results.json and the report's page but for their seconds; the report's figures and every
tensor of the models and of the training states, bit by bit; the names of all files but TensorBoard's. What TensorBoard
shows is compared with the run's own metrics.jsonl and results.json: every figure at its step, none missing or twice.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from tawin.run.states import damage, states
from tawin.run.tracking import FOLDER as EVENTS
from tawin.run.tracking import flat, numbers

from .event_files import read_events, scalars_of

_SECONDS = re.compile(r"(?<=<td>)(?:baselines|sft) [\d.,]+, [^<]+(?=</td>)")  # of the parts, in the table of runs


def differences(run: Path, whole: Path) -> list[str]:
    """Names of what differs or is damaged; none where the run is equal. Both folders have the same name."""
    found = []
    if _metrics(run) != _metrics(whole):
        found.append("metrics.jsonl")
    if _without_seconds(run / "results.json") != _without_seconds(whole / "results.json"):
        found.append("results.json")
    names, theirs = _files(run), _files(whole)
    if names != theirs:
        found.append(f"files: {sorted(names ^ theirs)}")
    for name in sorted(names & theirs):
        if name.endswith(".safetensors") and not _same_tensors(run / name, whole / name):
            found.append(name)
        if name.endswith(".png") and (run / name).read_bytes() != (whole / name).read_bytes():
            found.append(name)
    if "report.html" in names and _page(run) != _page(whole):
        found.append("report.html")
    found += [f"{state.name}: {problem}" for state in states(run / "checkpoints") if (problem := damage(state))]
    return found + [f"{EVENTS}/{stage}: {tag}" for stage in ("sft", "grpo") for tag in _wrong_events(run, stage)]


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in _lines(run)]


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _without_seconds(path: Path) -> dict[str, Any]:
    results = json.loads(path.read_text())
    return {**results, "seconds": sorted(results["seconds"])}


def _files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if EVENTS not in path.relative_to(run).parts}


def _same_tensors(ours: Path, theirs: Path) -> bool:
    first, second = load_file(ours), load_file(theirs)
    return first.keys() == second.keys() and all(
        first[name].dtype == tensor.dtype
        and torch.equal(first[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))
        for name, tensor in second.items()
    )


def _page(run: Path) -> str:
    return _SECONDS.sub("", (run / "report.html").read_text())


def _wrong_events(run: Path, stage: str) -> list[str]:
    """What TensorBoard shows of a stage and should not, or not so often, or not at all."""
    folder = run / EVENTS / stage
    if not folder.exists():
        return ["nothing"]
    events = read_events(folder)
    shown, expected = scalars_of(events), _expected_scalars(run, stage)
    wrong = sorted(tag for tag in shown.keys() | expected.keys() if shown.get(tag) != expected.get(tag))
    if "config/text_summary" not in events.Tags()["tensors"] or len(events.Tensors("config/text_summary")) != 1:
        wrong.append("config")
    if "_hparams_/session_start_info" not in events.summary_metadata:
        wrong.append("hparams")
    return wrong


def _expected_scalars(run: Path, stage: str) -> dict[str, list[tuple[int, float]]]:
    figures = [(line["step"], numbers(line)) for line in _lines(run) if line["stage"] == stage]
    results = json.loads((run / "results.json").read_text())[stage]
    figures.append((figures[-1][0], flat({"results": results}, f"{stage}/")))
    expected: dict[str, list[tuple[int, float]]] = {}
    for step, named in figures:
        for tag, value in named.items():
            expected.setdefault(tag, []).append((step, float(np.float32(value))))  # as event files hold them
    return expected
