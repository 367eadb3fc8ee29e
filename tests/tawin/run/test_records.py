"""Run folders read back."""

from pathlib import Path

from tawin.config import Config
from tawin.run.folder import RunFolder
from tawin.run.records import Run

FOLDER = RunFolder(Path("none"))


def test_a_curve_takes_each_figure_from_its_own_kind_of_line_and_the_last_one_of_a_repeated_step():
    lines = [
        {"stage": "grpo", "step": 2, "reward": 0.2},
        {"stage": "grpo", "step": 1, "reward": 0.9},
        {"stage": "sft", "step": 1, "reward": 0.7},
        {"stage": "grpo", "step": 1, "reward": 0.1},
        {"stage": "grpo", "step": 2, "valid": {"recall@1": 0.5}},
    ]
    run = Run("run", Config(), lines, {}, FOLDER)
    assert run.curve("grpo", "reward") == {1: 0.1, 2: 0.2}
    assert list(run.curve("grpo", "reward")) == [1, 2]
    assert run.curve("grpo", "recall@1", "valid") == {2: 0.5}
