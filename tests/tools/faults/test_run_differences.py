"""What a comparison of two runs has to see, on copies of a real run that are damaged by hand."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from tawin.cli import train
from tawin.run.states import states
from tools.faults.run import OPTIONS
from tools.faults.run_differences import differences


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train.main([*OPTIONS, "--grpo.steps=2", "--sft.epochs=1", "--out", str(out)])
    return out


def shorten(path: Path, kept: float) -> None:
    os.truncate(path, int(kept * path.stat().st_size))


def repeat_the_last_line(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines, lines[-1]]))


def show_a_step_twice(run: Path) -> None:
    with SummaryWriter(str(run / "tensorboard" / "grpo"), filename_suffix=".again") as writer:
        writer.add_scalar("grpo/reward", 0.0, 1)
    (path,) = (run / "tensorboard" / "grpo").glob("*.again")
    path.rename(path.with_name("events.out.tfevents.9999999999"))  # the last by name: not forgotten with a purged step


def change_a_weight(run: Path) -> None:
    with open(states(run / "checkpoints")[-1] / "weights.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")


def results_shown(run: Path) -> Path:
    (path,) = (run / "tensorboard" / "sft").glob("*.results")
    return path


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        (repeat_the_last_line, "metrics.jsonl"),
        (lambda run: (run / "recall.png").unlink(), "files: ['recall.png']"),
        (lambda run: shorten(run / "report.html", 0.9999), "report.html"),
        (change_a_weight, "weights.safetensors is not what was written (SHA-256)"),
        (show_a_step_twice, "tensorboard/grpo: grpo/reward"),
        (lambda run: results_shown(run).unlink(), "tensorboard/sft: sft/results/test/recall@3"),
        (lambda run: shorten(results_shown(run), 0.9), "tensorboard/sft: sft/results/test/ndcg@10"),
        (lambda run: shutil.rmtree(run / "tensorboard" / "grpo"), "tensorboard/grpo: nothing"),
    ],
)
def test_what_is_damaged_or_missing_or_shown_twice_is_a_difference(
    damage: Callable[[Path], object], seen: str, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    assert differences(tmp_path / "run", whole) == []
    damage(tmp_path / "run")
    assert any(seen in found for found in differences(tmp_path / "run", whole))
