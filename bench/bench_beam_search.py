"""Constrained beam search: tree attention against transformers' `generate` with a per-beam Python processor.

Run: pytest bench/bench_beam_search.py (a file that is named is collected, though its name has no test_).
Both ways must give the same items and scores before either is timed. The two are timed one after the other; for a ratio
on a machine that is not idle use `python -m bench.foundation`, which takes turns.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import Case, beam_search_case

pytestmark = pytest.mark.benchmark(group="beam search")


@pytest.fixture(scope="module")
def case() -> Case:
    case = beam_search_case()
    case.check()
    return case


def test_beam_search_by_tree_attention(benchmark: BenchmarkFixture, case: Case) -> None:
    benchmark.extra_info["shape"] = case.shape
    benchmark.pedantic(case.ours, rounds=20, warmup_rounds=2)


def test_beam_search_by_generate(benchmark: BenchmarkFixture, case: Case) -> None:
    benchmark.extra_info["shape"] = case.shape
    benchmark.pedantic(case.peer, rounds=4)
