"""Log-probs of given tokens, forward and backward: `linear_log_probs` against the heads that users would pick today.

Run: pytest bench/bench_log_prob.py [-k "step and trl"] [--benchmark-json FILE]
(a file that is named is collected, though its name has no test_). On the CPU, where "auto" is the reference op, small
shapes; on CUDA those of `cases.loss.GPU_SHAPES`, the axes swept from two points. A peer that is not installed or has no
kernel for the device is skipped and says what it needs.

The gradient that comes from above is that of a GRPO step: 0 for every token of a dead group. Where prefixes are shared
ours takes a row for each distinct one (`rows=`), the peers a row for each token, as they know no other form. All
log-probs are computed, so here dead groups save the backward pass alone; `bench_grpo_loss.py` has them left out whole.
Every way's log-probs and gradients are compared with ours before it is timed. extra_info has the distance of the
log-probs from fp64, the memory that a call takes beyond inputs and gradients, and the floor that `cases.loss.work_of`
states for an H200.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from tawin_kernels import linear_log_probs
from torch import Tensor

from bench.cases.loss import (
    CPU_SHAPES,
    GPU_SHAPES,
    LENGTH,
    Answer,
    LossInputs,
    answer_of,
    compare_answers,
    log_prob_error,
    make_inputs,
    work_of,
)
from bench.measure import extra_memory, machine_facts, synchronised_clock, time_warm
from bench.peers import LOG_PROB_HEADS, log_prob_head
from bench.skips import skipped_where_it_cannot_run

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SHAPES = GPU_SHAPES if ON_GPU else CPU_SHAPES

Way = Callable[[], Tensor]


@lru_cache(maxsize=1)  # tests run shape by shape, and the inputs of one fill gigabytes
def inputs_of(name: str) -> LossInputs:
    return make_inputs(SHAPES[name], DEVICE)


@lru_cache(maxsize=1)
def our_answer(name: str) -> Answer:
    inputs = inputs_of(name)
    return answer_of(way_of("ours", name, inputs)(), inputs)


def way_of(way: str, name: str, inputs: LossInputs) -> Way:
    """Forward and backward, as a function that returns the log-probs [B, G, L] and leaves gradients at the leaves."""
    is_shared = SHAPES[name].is_shared
    coefficients = (-inputs.advantages[..., None] / inputs.token_ids.numel()).expand(-1, -1, LENGTH).contiguous()
    head = None if way == "ours" else log_prob_head(way, DEVICE)

    def run() -> Tensor:
        inputs.clear_gradients()
        if head is not None:
            states = inputs.repeated_hidden.flatten(0, -2)
            scored = head(states, inputs.lm_head_weight, inputs.token_ids.flatten(), 1.0)
            log_probs = scored.view(inputs.token_ids.shape)
        elif is_shared:
            log_probs = linear_log_probs(inputs.hidden, inputs.lm_head_weight, inputs.token_ids, rows=inputs.rows)
        else:
            log_probs = linear_log_probs(inputs.repeated_hidden, inputs.lm_head_weight, inputs.token_ids)
        log_probs.backward(coefficients)
        return log_probs.detach()

    return run


@pytest.mark.benchmark(timer=synchronised_clock, disable_gc=True)
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("way", ["ours", *LOG_PROB_HEADS])
@pytest.mark.parametrize("name", SHAPES)
def test_log_probs(benchmark: BenchmarkFixture, name: str, way: str) -> None:
    shape, inputs = SHAPES[name], inputs_of(name)
    try:
        with skipped_where_it_cannot_run(way):
            run = way_of(way, name, inputs)
            answer = answer_of(run(), inputs)
            agreement = compare_answers(our_answer(name), answer, shape.dtype)
            error = log_prob_error(answer.value, inputs)
            del answer
            memory = extra_memory(run) if ON_GPU else None
            benchmark.group = name
            median = time_warm(benchmark, run)
    finally:
        inputs.clear_gradients()

    work = work_of(shape, inputs, skips_dead=False)
    benchmark.extra_info.update(
        {
            "shape": str(shape),
            "way": way,
            "agreement": agreement,
            "log_prob_error_against_fp64": error,
            "extra_bytes": memory,
            "distinct_rows": work.forward_rows,
            "live_rows": work.backward_rows,
            "flops": work.flops,
            "bytes": work.bytes,
            "floor_milliseconds_of_an_h200": round(work.floor_seconds * 1e3, 4),
            **machine_facts(DEVICE),
        }
    )
    if median is not None and ON_GPU:  # the floor of a GPU says nothing about a CPU
        benchmark.extra_info["time_over_floor"] = round(median / work.floor_seconds, 2)
