"""Predicted times are the measured ones times what is planned."""

from __future__ import annotations

import dataclasses

import pytest

from tawin.config import Config
from tawin.dry_run import predict
from tawin.dry_run.plan import Plan, StagePlan
from tawin.dry_run.probe import Seconds, _ends

PLAN = Plan(
    StagePlan(steps=100, epochs=2, evaluations=3, sequences=64, tokens=640),
    StagePlan(steps=10, epochs=1, evaluations=2, sequences=64, tokens=192),
    valid_users=130,
    final_users=200,
)


def test_each_part_is_its_measured_time_as_often_as_it_comes() -> None:
    seconds = Seconds(0.5, 1.0, 3.0, evaluation_batch=2.0, peak_bytes=0)
    phases = {phase.name: (phase.least, phase.likely, phase.most) for phase in predict(PLAN, seconds, Config())}
    assert phases == {
        "SFT steps": (50.0,) * 3,
        "evaluations in SFT": (3 * 3 * 2.0,) * 3,  # 130 users are 3 batches of 64
        "GRPO steps": (10.0, 20.0, 30.0),
        "evaluations in GRPO": (2 * 3 * 2.0,) * 3,
        "final evaluations": (2 * 4 * 2.0,) * 3,
    }
    assert seconds.steps == 6


def test_a_stage_that_the_run_has_not_takes_no_time() -> None:
    seconds = Seconds(None, None, None, evaluation_batch=1.0, peak_bytes=0)
    plan = dataclasses.replace(PLAN, sft=dataclasses.replace(PLAN.sft, steps=0))
    phases = predict(plan, seconds, Config())
    assert [phase.most for phase in phases if "steps" in phase.name] == [0.0, 0.0]
    assert seconds.steps == 0


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (((0.0, 1.0), (1.0, 3.0)), (1.0, 3.0)),
        (((0.2, 1.4), (0.7, 2.4)), (1.0, 3.0)),
        (((1.0, 2.0), (1.0, 4.0)), (3.0, 3.0)),  # both with hits everywhere: one kind of step
        (((0.2, 2.0), (1.0, 1.0)), (2.0, 1.0)),  # noise: more hits are never taken to be faster
    ],
)
def test_a_step_without_and_with_hits_is_what_the_line_through_the_two_says(
    points: tuple[tuple[float, float], tuple[float, float]], expected: tuple[float, float]
) -> None:
    assert _ends(*points) == pytest.approx(expected)
