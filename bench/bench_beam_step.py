"""One constrained beam step: ours against the reference op and the peers, eager, compiled and in a CUDA graph.

Run: pytest bench/bench_beam_step.py [-k "base and ours"] [--benchmark-json FILE]
(a file that is named is collected, though its name has no test_). On the CPU, where "auto" is the reference op, two
small shapes; on CUDA the shapes of `cases.beam.GPU_SHAPES`, each axis swept from one base point.

What is timed is a rotation: the step on one set of inputs after another, the LM head included, until more than twice
the L2 cache has been read, so that no step finds its inputs in the cache. The clock waits for the device at both ends
of a round of one or more rotations. The benchmark's table has the time of a rotation, the same number of steps for all
ways of a shape; extra_info has microseconds a step, beside the floor that `cases.beam.work_of` states for an H200.
Every way's first step is compared with ours before it is timed. Peers are compiled in torch.compile's default mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
import triton
from pytest_benchmark.fixture import BenchmarkFixture
from tawin_kernels import BeamStep, ItemTrie, beam_step

from bench.cases.beam import (
    CPU_SHAPES,
    GPU_SHAPES,
    StepInputs,
    StepShape,
    catalogue,
    compare_steps,
    make_inputs,
    score_tolerance,
    work_of,
)
from bench.measure import SECONDS_A_BENCHMARK, machine_facts, seconds_of, synchronised_clock
from bench.peers import DenseMaskTrie, dense_mask_step, full_softmax_step
from bench.skips import skipped_where_it_cannot_run

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SHAPES = GPU_SHAPES if ON_GPU else CPU_SHAPES
WAYS = ("ours", "reference", "full_softmax", "full_softmax compiled", "dense_mask", "dense_mask compiled")
CPU_INPUT_SETS = 2
MAX_INPUT_SETS = 64
SHORTEST_ROUND = 5e-3  # seconds: beside it the wait for the device at the end is short

Step = Callable[[StepInputs], BeamStep]


@dataclass(frozen=True)
class StepCase:
    shape: StepShape
    trie: ItemTrie
    index: DenseMaskTrie
    inputs: tuple[StepInputs, ...]


@lru_cache(maxsize=1)  # the inputs of one shape fill gigabytes; tests run shape by shape
def case_of(name: str) -> StepCase:
    shape = SHAPES[name]
    trie = catalogue(shape.items, shape.text_tokens).to(DEVICE)
    first = make_inputs(shape, trie)
    sets = CPU_INPUT_SETS
    if ON_GPU:
        cache = torch.cuda.get_device_properties(DEVICE).L2_cache_size
        sets = min(MAX_INPUT_SETS, max(2, math.ceil(2 * cache / work_of(shape, trie, first).bytes)))
    inputs = (first, *(make_inputs(shape, trie, seed=seed) for seed in range(1, sets)))
    return StepCase(shape, trie, DenseMaskTrie.from_trie(trie), inputs)


def step_of(way: str, case: StepCase) -> Step:
    """The step done one way, as a function of its inputs."""
    shape, trie, index = case.shape, case.trie, case.index
    name, _, compiled = way.partition(" ")
    if name in ("ours", "reference"):
        impl: Any = "auto" if name == "ours" else "reference"
        return lambda x: beam_step(
            x.hidden,
            x.lm_head_weight,
            trie,
            x.nodes,
            x.scores,
            shape.beam_width,
            normalizer=shape.normalizer,  # type: ignore[arg-type]
            depth=shape.depth,
            impl=impl,
        )
    peer: Any = full_softmax_step if name == "full_softmax" else dense_mask_step
    if compiled:
        torch.compiler.reset()  # else the shapes before this one count against the limit of recompilations
        peer = torch.compile(peer, fullgraph=True, dynamic=False)
    if name == "full_softmax":
        widest = index.levels[shape.depth].max_children
        return lambda x: peer(
            x.hidden,
            x.lm_head_weight,
            trie.child_offsets,
            trie.edge_tokens,
            x.nodes,
            x.scores,
            shape.beam_width,
            max_children=widest,
            normalizer=shape.normalizer,
        )
    return lambda x: peer(
        x.hidden,
        x.lm_head_weight,
        index,
        x.nodes,
        x.scores,
        shape.beam_width,
        depth=shape.depth,
        normalizer=shape.normalizer,
    )


def captured_in_graph(rotation: Callable[[], None]) -> Callable[[], None]:
    """The rotation as one CUDA graph: what is left is the device's work, none of the host's."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        rotation()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rotation()
    return graph.replay


@pytest.mark.benchmark(timer=synchronised_clock, disable_gc=True)
@pytest.mark.parametrize("captured", [False, True] if ON_GPU else [False], ids=lambda c: "graph" if c else "eager")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SHAPES)
def test_beam_step(benchmark: BenchmarkFixture, name: str, way: str, captured: bool) -> None:
    if captured and way == "reference":
        pytest.skip("the reference op reads counts on the host, which no graph can hold")
    case = case_of(name)
    step = step_of(way, case)
    keeps_fp32 = way in ("ours", "reference")  # so that only the order of sums may tell them apart
    tolerance = score_tolerance(torch.float32 if keeps_fp32 else case.shape.dtype)
    with skipped_where_it_cannot_run(way):
        ours = step_of("ours", case)(case.inputs[0])
        agreement = compare_steps(ours, step(case.inputs[0]), tolerance)

        def rotation() -> None:
            for inputs in case.inputs:
                step(inputs)

        run = captured_in_graph(rotation) if captured else rotation
        run()
        seconds = seconds_of(run)

    rotations = max(1, math.ceil(SHORTEST_ROUND / seconds))
    rounds = min(50, max(3, int(SECONDS_A_BENCHMARK / (seconds * rotations))))
    benchmark.group = f"{name}{', graph' if captured else ''}"
    benchmark.pedantic(run, rounds=rounds, iterations=rotations, warmup_rounds=1)

    work = work_of(case.shape, case.trie, case.inputs[0])
    benchmark.extra_info.update(
        {
            "shape": str(case.shape),
            "way": way,
            "in_graph": captured,
            "agreement": agreement,
            "steps_a_rotation": len(case.inputs),
            "rotations_a_round": rotations,
            "candidates": work.candidates,
            "bytes": work.bytes,
            "flops": work.flops,
            "floor_microseconds_of_an_h200": round(work.floor_seconds * 1e6, 2),
            "triton": triton.__version__,
            **machine_facts(DEVICE),
        }
    )
    if benchmark.stats is not None:  # None: --benchmark-disable
        a_step = benchmark.stats.stats.median / len(case.inputs)
        benchmark.extra_info["microseconds_a_step"] = round(a_step * 1e6, 2)
        if ON_GPU:  # the floor of a GPU says nothing about a CPU
            benchmark.extra_info["time_over_floor"] = round(a_step / work.floor_seconds, 2)
