"""TAWin's advantages of a batch of groups: `group_advantages` against PyTorch, eager and compiled.

Run: pytest bench/bench_advantage.py [--benchmark-json FILE]
(a file that is named is collected, though its name has no test_). The peer has no loop over the group, as the reference
op has. The tensors are so small that launches are what is timed: a round is many calls, launched as a trainer would,
and extra_info has microseconds a call. Every way's advantages are compared with ours before it is timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from tawin_kernels import TAWin, group_advantages
from torch import Tensor

from bench.cases.floors import floor_seconds
from bench.measure import machine_facts, seconds_of, synchronised_clock, time_warm
from bench.peers import torch_group_advantages

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SHAPES = ((256, 16), (64, 512))  # B, G
# On the CPU, compilation would take most of a minute.
WAYS = ("ours", "eager", "compiled") if ON_GPU else ("ours", "eager")
SHORTEST_ROUND = 5e-3  # seconds: beside it the wait for the device at the end is short
# fp32 means and deviations, summed up in another order, of advantages of up to sqrt(512) times a weight of up to 512.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


def way_of(way: str, tawin: TAWin) -> Callable[[Tensor, Tensor], Tensor]:
    if way == "ours":
        return lambda rewards, scores: group_advantages(rewards, scores, tawin=tawin)
    if way == "eager":
        return lambda rewards, scores: torch_group_advantages(rewards, scores, tawin)
    torch.compiler.reset()  # else the shapes before count against the limit of recompilations
    compiled = torch.compile(torch_group_advantages, fullgraph=True, dynamic=False)
    return lambda rewards, scores: compiled(rewards, scores, tawin)


@pytest.mark.benchmark(timer=synchronised_clock, disable_gc=True)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rank_transform", ["identity", "log2", "fraction"])
@pytest.mark.parametrize(("groups", "group_size"), SHAPES)
def test_group_advantages(
    benchmark: BenchmarkFixture, groups: int, group_size: int, rank_transform: str, way: str
) -> None:
    tawin = TAWin(window=3.0, rank_transform=rank_transform)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(0)
    rewards = torch.zeros(groups, group_size)
    rewards[: groups // 2, 3] = 1.0  # half of the groups have a hit
    scores = torch.randn(groups, group_size, generator=draw).to(DEVICE)
    rewards = rewards.to(DEVICE)
    run = way_of(way, tawin)
    ours = way_of("ours", tawin)(rewards, scores)
    torch.testing.assert_close(run(rewards, scores), ours, **TOLERANCE)

    calls = max(1, math.ceil(SHORTEST_ROUND / seconds_of(lambda: run(rewards, scores))))

    def a_round() -> None:
        for _ in range(calls):
            run(rewards, scores)

    benchmark.group = f"{groups} x {group_size}, {rank_transform}"
    median = time_warm(benchmark, a_round)
    floor = floor_seconds(rewards.nbytes + scores.nbytes + ours.nbytes)
    benchmark.extra_info.update(
        {
            "way": way,
            "agreement": f"within {(run(rewards, scores) - ours).abs().max().item():.1e}",
            "calls_a_round": calls,
            "floor_microseconds_of_an_h200": round(floor * 1e6, 2),
            **machine_facts(DEVICE),
        }
    )
    if median is not None:
        benchmark.extra_info["microseconds_a_call"] = round(median / calls * 1e6, 2)
        if ON_GPU:  # the floor of a GPU says nothing about a CPU
            benchmark.extra_info["time_over_floor"] = round(median / calls / floor, 2)
