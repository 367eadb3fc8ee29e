"""Constrained beam search: tree attention against transformers' `generate` with a per-beam Python processor.

Run: pytest bench/bench_beam_search.py (a file that is named is collected, though its name has no test_). On the CPU the
small policy of `cases`; on CUDA a model of Qwen2.5-0.5B's shape with random weights in bf16, 256-token prompts and a
catalogue of 100,000 four-level semantic ids, in batches of 1, 16 and 64 prompts.

Both ways must give the same items and scores before either is timed. The two are timed one after the other, each with
its goal in extra_info; for a ratio on a machine that is not idle use `python -m bench.foundation`, which takes turns.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases.beam import draw_items
from bench.cases.ratios import QWEN2_5_HALF_BILLION, Case, beam_search_case
from bench.measure import machine_facts, synchronised_clock

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
BATCHES = [16, 1, 64] if ON_GPU else [16]


@pytest.fixture(scope="module", params=BATCHES, ids=lambda prompts: f"{prompts} prompts")
def case(request: pytest.FixtureRequest) -> Case:
    if not ON_GPU:
        return beam_search_case(prompts=request.param)
    return beam_search_case(
        prompts=request.param,
        prompt_length=256,
        beam_width=16,
        model_shape=QWEN2_5_HALF_BILLION,
        dtype=torch.bfloat16,
        catalogue=("drawn", draw_items(100_000)),
        goal=50.0,
        device=DEVICE,
    )


@pytest.fixture(scope="module")
def agreement(case: Case) -> str:
    return case.check()


def describe(benchmark: BenchmarkFixture, case: Case, agreement: str) -> None:
    benchmark.group = case.shape
    benchmark.extra_info.update(
        {"shape": case.shape, "goal_times_as_fast": case.goal, "agreement": agreement, **machine_facts(DEVICE)}
    )


@pytest.mark.benchmark(timer=synchronised_clock)
def test_beam_search_by_tree_attention(benchmark: BenchmarkFixture, case: Case, agreement: str) -> None:
    describe(benchmark, case, agreement)
    benchmark.pedantic(case.ours, rounds=20, warmup_rounds=3)  # a shape that comes back is captured in a CUDA graph


@pytest.mark.benchmark(timer=synchronised_clock)
def test_beam_search_by_generate(benchmark: BenchmarkFixture, case: Case, agreement: str) -> None:
    describe(benchmark, case, agreement)
    benchmark.pedantic(case.peer, rounds=4, warmup_rounds=1 if ON_GPU else 0)
