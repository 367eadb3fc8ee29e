"""Options of a run of seconds, and how two such runs are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

SMALL = [
    "--synthetic.num-users=60",
    "--synthetic.num-items=30",
    "--synthetic.num-clusters=5",
    "--catalog.codes=8",
    "--policy.hidden-size=16",
    "--policy.layers=1",
    "--policy.heads=2",
    "--policy.intermediate-size=24",
    "--sft.epochs=2",
    "--sft.batch-size=16",
    "--grpo.steps=4",
    "--grpo.batch-size=8",
    "--grpo.group-size=6",
    "--grpo.evaluate-every=2",
    "--evaluation.beam-width=12",
    "--evaluation.valid-users=20",
]


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]  # the one thing that differs between two equal runs
    return lines


def assert_same_run(resumed: Path, whole: Path) -> None:
    assert metrics(resumed) == metrics(whole)
    for stage in ("sft", "grpo"):
        ours = load_file(resumed / "checkpoints" / stage / "model.safetensors")
        theirs = load_file(whole / "checkpoints" / stage / "model.safetensors")
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ours, theirs = (json.loads((p / "results.json").read_text()) for p in (resumed, whole))
    assert ours["grpo"] == theirs["grpo"] and ours["sft"] == theirs["sft"]
