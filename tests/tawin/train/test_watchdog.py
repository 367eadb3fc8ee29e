"""The watchdog: collapses and explosions are seen once each, luck is not, and a real run is driven out of bounds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator

from tawin.catalog.tokenizer import make_semantic_tokenizer
from tawin.config import Config, EvaluationConfig, GRPOConfig, WatchdogConfig
from tawin.data.dataset import Examples, Split
from tawin.run.folder import RunFolder
from tawin.train import watchdog
from tawin.train.grpo import train_grpo
from tawin.train.watchdog import Limits, Watchdog, WatchdogError

from ..models import tiny_model
from ..small_groups import small_catalog

LIMITS = Limits(window=4, patience=3)


def alarms(hit_shares: list[float], prompts: int = 100, action: str = "warn") -> list[int]:
    """The steps, from 0, at which hits set off an alarm."""
    one = Watchdog(WatchdogConfig(action), prompts, LIMITS)  # type: ignore[arg-type]
    return [step for step, share in enumerate(hit_shares) if one.see({"hit_share": share, "kl": 0.0})]


def test_hits_that_fall_to_a_fifth_and_stay_there_are_a_collapse() -> None:
    good, bad = [0.5] * 8, [0.05] * 12
    # A window is below a fifth from the fourth bad step on (4 x .05 = .2 of 2), for three steps: 8 + 3 + 2.
    assert alarms(good + bad) == [13]
    assert alarms(good + [0.15] * 12) == []  # three tenths of the best
    assert alarms(good + bad[:5] + good) == []  # over before it lasts


def test_a_collapse_is_said_again_only_after_it_has_been_over() -> None:
    assert alarms([0.5] * 8 + [0.0] * 30) == [13]
    assert alarms([0.5] * 8 + [0.0] * 8 + [0.5] * 8 + [0.0] * 8) == [13, 29]


def test_few_hits_are_no_measure() -> None:
    few = [0.05] * 4 + [0.0] * 20  # of 100 prompts: 20 hits in the best window
    assert alarms(few) == []
    assert alarms(few, prompts=200) == [9]


def test_random_completions_are_not_watched_for_hits() -> None:
    assert alarms([0.5] * 8 + [0.0] * 30, prompts=0) == []


def test_a_kl_above_its_limit_three_times_in_a_row_is_an_explosion() -> None:
    one = Watchdog(WatchdogConfig(), 10, Limits(max_kl=2.0))
    seen = [one.see({"kl": kl}) for kl in (3.0, 3.0, 1.0, 3.0, 3.0, 3.0, 4.0, 1.0)]
    assert [[alarm.name for alarm in found] for found in seen] == [[]] * 5 + [["kl_explosion"]] + [[]] * 2
    assert seen[5][0].value == 3.0 and "above 2 in 3 steps" in seen[5][0].message


def test_a_step_that_was_skipped_has_no_figures_and_is_passed_over() -> None:
    one = Watchdog(WatchdogConfig(), 100, Limits(window=4, patience=3, max_kl=1.0))
    assert [one.see(figures) for figures in ({"kl": 2.0}, {}, {"kl": 2.0}, {"reward": 1.0})] == [[]] * 4


def test_a_watchdog_that_is_off_sees_nothing() -> None:
    assert alarms([0.5] * 8 + [0.0] * 30, action="off") == []


def test_an_action_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"watchdog.action: expected .*, got 'bark'"):
        WatchdogConfig("bark")  # type: ignore[arg-type]


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a run of a dozen steps can pass."""
    monkeypatch.setattr(watchdog, "LIMITS", Limits(window=2, hit_share=0.6, patience=1, max_kl=5.0))


def driven_out_of_bounds(folder: Path, action: str) -> tuple[Config, RunFolder]:
    """A policy that soon finds all targets, trained at a learning rate that is a thousand times too large."""
    config = Config(
        grpo=GRPOConfig(
            learning_rate=1.0,
            steps=12,
            batch_size=21,
            group_size=3,
            beta=1e-3,
            evaluate_every=4,
            warmup_share=0.5,
            schedule="constant",
        ),
        evaluation=EvaluationConfig(beam_width=10, exclude_history="no"),
        watchdog=WatchdogConfig(action),  # type: ignore[arg-type]
    )
    return config, RunFolder.create(folder, config)


def train(config: Config, run: RunFolder) -> None:
    catalog = small_catalog()
    prompts = Examples(np.arange(7), [np.array([item]) for item in range(7)], np.array([2, 2, 3, 3, 2, 3, 2]))
    split = Split(sft=[], rl=prompts, valid=prompts, test=prompts)
    tokenizer = make_semantic_tokenizer([f"<a_{i}>" for i in range(37)])
    model, reference = (tiny_model("qwen2", seed=1) for _ in range(2))
    train_grpo(Accelerator(cpu=True), model, reference, tokenizer, catalog, split, config, run)


def lines_of(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("narrow")
def test_a_run_that_goes_wrong_is_warned_of_and_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = driven_out_of_bounds(tmp_path / "run", "warn")
    train(config, run)
    found = {line["alarm"]: line for line in lines_of(run) if "alarm" in line}
    assert found["kl_explosion"]["value"] > found["kl_explosion"]["limit"] == 5.0
    # Whether the hits go too depends on the last places of a processor's sums.
    said = capsys.readouterr().out
    assert said.count("warning: grpo step") == len([line for line in lines_of(run) if "alarm" in line])
    assert "exploding KL" in said


@pytest.mark.usefixtures("narrow")
def test_a_run_that_goes_wrong_is_stopped_where_asked_and_goes_on_where_asked(tmp_path: Path) -> None:
    config, run = driven_out_of_bounds(tmp_path / "run", "stop")
    with pytest.raises(WatchdogError, match=r"grpo step \d+: exploding KL: .*--resume --watchdog.action warn"):
        train(config, run)
    steps = [line["step"] for line in lines_of(run) if "reward" in line]
    assert len(steps) < 12
    train(dataclasses.replace(config, watchdog=WatchdogConfig(action="off")), run)
    assert [line["step"] for line in lines_of(run) if "reward" in line] == list(range(1, 13))
