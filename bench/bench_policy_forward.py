"""The policy's forward, loss and backward over groups: prompts run once a group against prompts repeated a completion.

Run: pytest bench/bench_policy_forward.py (a file that is named is collected, though its name has no test_).
Both ways must give the same log-probs and gradients before either is timed. The two are timed one after the other; for
a ratio on a machine that is not idle use `python -m bench.foundation`, which takes turns.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases.ratios import Case, policy_forward_case


@pytest.fixture(scope="module", params=["short", "long"])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "short":
        case = policy_forward_case(prompts=8, prompt_length=160, completion_length=4)
    else:
        case = policy_forward_case(prompts=2, prompt_length=512, completion_length=10)
    case.check()
    return case


def test_forward_and_backward_with_shared_prompts(benchmark: BenchmarkFixture, case: Case) -> None:
    benchmark.group = case.shape
    benchmark.pedantic(case.ours, rounds=10, warmup_rounds=1)


def test_forward_and_backward_with_repeated_prompts(benchmark: BenchmarkFixture, case: Case) -> None:
    benchmark.group = case.shape
    benchmark.pedantic(case.peer, rounds=3)
