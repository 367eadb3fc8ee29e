"""The parts of a step add up for whoever collects them, and are labels for a profiler."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import profile

from tawin.run.phases import PHASES, phase, phase_seconds


def test_every_phase_has_its_seconds_and_parts_that_come_again_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 20.0, 22.5, 30.0, 30.25])
    monkeypatch.setattr("tawin.run.phases._now", lambda: next(clock))
    with phase_seconds() as seconds:
        with phase("decode"):
            pass
        with phase("decode"):
            pass
        with phase("loss"):
            pass
    assert tuple(seconds) == PHASES
    assert seconds["decode"] == 3.5 and seconds["loss"] == 0.25 and seconds["backward"] == 0.0


def test_without_a_collector_no_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> float:
        raise AssertionError("the clock was read")

    monkeypatch.setattr("tawin.run.phases._now", refuse)
    with phase("decode"):
        pass


def test_collecting_ends_with_its_block() -> None:
    with phase_seconds() as seconds:
        pass
    with phase("decode"):
        torch.zeros(1)
    assert seconds["decode"] == 0.0


def test_a_profiler_sees_the_phases() -> None:
    with profile() as trace, phase("policy_forward"):
        torch.zeros(1)
    assert "tawin.policy_forward" in {event.key for event in trace.key_averages()}


def test_a_phase_that_fails_fails() -> None:
    with phase_seconds(), pytest.raises(ZeroDivisionError), phase("loss"):
        _ = 1 / 0
