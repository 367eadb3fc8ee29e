"""A few cases of every target of tools.fuzz.run, whose long runs are in bench/results; the ops as kernels too."""

from __future__ import annotations

import pytest

from tools.fuzz.ops import Where
from tools.fuzz.run import OPS, TARGETS, run_target

from ...kernels.devices import DEVICE

# A second or two each, on one core.
CASES = {
    "beam_step": 100,
    "advantages": 150,
    "losses": 80,
    "log_probs": 100,
    "tawin_loss": 60,
    "trie": 300,
    "trie_file": 100,
    "beam_search": 60,
    "data": 60,
    "catalog": 60,
    "config": 40,
    "prepare": 150,
}


@pytest.mark.parametrize("target", TARGETS)
def test_every_case_is_answered_right_or_refused_well(target: str) -> None:
    found = run_target(target, Where(), cases=CASES[target], seed=1)
    assert found.failures == 0, found.first_failures[0]
    assert found.cases == CASES[target] == sum(found.outcomes.values())
    assert found.outcomes["passed"] > 0
    never_refuses = ("losses", "beam_search")
    assert (found.outcomes["refused"] > 0) == (target not in never_refuses)


@pytest.mark.parametrize("target", OPS)
def test_kernels_answer_random_shapes_as_the_formulas_do(target: str) -> None:
    found = run_target(target, Where(DEVICE, "triton"), cases=6, seed=2)
    assert found.failures == 0, found.first_failures[0]
