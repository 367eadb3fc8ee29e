"""Predicted times are the measured ones times what is planned."""

from __future__ import annotations

import dataclasses
import time

import pytest

from tawin.config import Config
from tawin.dry_run import Phase, evaluation_advice, predict
from tawin.dry_run.plan import Plan, StagePlan
from tawin.dry_run.probe import Seconds, _Clock, _ends

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


def test_a_stage_that_the_run_has_not_takes_no_time() -> None:
    seconds = Seconds(None, None, None, evaluation_batch=1.0, peak_bytes=0)
    plan = dataclasses.replace(PLAN, sft=dataclasses.replace(PLAN.sft, steps=0))
    phases = predict(plan, seconds, Config())
    assert [phase.most for phase in phases if "steps" in phase.name] == [0.0, 0.0]


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


def test_without_rl_the_final_evaluation_is_one() -> None:
    plan = dataclasses.replace(PLAN, grpo=dataclasses.replace(PLAN.grpo, steps=0))
    phases = {phase.name: phase.likely for phase in predict(plan, Seconds(0.5, None, None, 2.0, 0), Config())}
    assert phases["final evaluations"] == 4 * 2.0


class Machine:
    """Time that passes by what is asked for alone: so many seconds a sequence."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, each: float, fixed: float = 0.0) -> None:
        self.now, self.each, self.fixed, self.sizes = 0.0, each, fixed, []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def __call__(self, size: int) -> None:
        self.sizes.append(size)
        self.now += self.fixed + size * self.each


def test_a_micro_batch_that_fits_the_time_is_measured_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, each=0.1)
    clock = _Clock(60.0, speed=1e9, calls_left=2, predicted=[])
    assert clock.seconds("SFT", 1e8, 64, machine) == pytest.approx(6.4)
    assert machine.sizes == [1, 64] and clock.predicted == []


def test_one_that_does_not_is_measured_on_fewer_sequences_and_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, each=2.0)
    clock = _Clock(60.0, speed=1e9, calls_left=2, predicted=[])
    assert clock.seconds("SFT", 2e9, 64, machine) == pytest.approx(128.0)
    assert machine.sizes == [1, 7] and machine.now <= 30.0


def test_what_does_not_grow_with_the_size_is_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, each=0.1, fixed=8.0)  # an optimizer's step
    clock = _Clock(60.0, speed=1e9, calls_left=3, predicted=[])
    assert clock.seconds("SFT", 1e8, 64, machine) == pytest.approx(14.4)
    assert machine.now <= 20.0


def test_what_would_take_too_long_alone_is_predicted_by_the_speed_that_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(monkeypatch, each=4.0)
    clock = _Clock(60.0, speed=1e9, calls_left=3, predicted=[])
    clock.seconds("evaluation", 1e9, 4, machine)  # four times slower than plain products
    assert clock.seconds("SFT", 9e9, 8, machine) == pytest.approx(8 * 36.0)
    assert clock.predicted == ["SFT"] and machine.now <= 60.0
    assert "SFT: one alone would take about 36 s: predicted, not measured" in capsys.readouterr().out


def test_evaluation_is_named_with_what_to_change_where_it_takes_most_of_a_run() -> None:
    def phases(evaluation: float) -> list[Phase]:
        return [Phase("SFT steps", "", *(40.0,) * 3), Phase("final evaluations", "", *(evaluation,) * 3)]

    plan = dataclasses.replace(PLAN, valid_users=1000, final_users=6000)
    said = evaluation_advice(phases(60.0), plan, Config())
    assert "60% of the time" in said
    assert all(
        option in said for option in ("--evaluation.valid-users", "--evaluation.test-users", "--evaluation.beam")
    )
    assert evaluation_advice(phases(20.0), plan, Config()) == ""
