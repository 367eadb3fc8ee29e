"""From hidden states to the loss of a batch of groups and its gradients: `tawin_grpo_loss` against the peers' losses.

Run: pytest bench/bench_grpo_loss.py [-k "step and liger"] [--benchmark-json FILE]
(a file that is named is collected, though its name has no test_). On the CPU, where "auto" is the reference op, small
shapes; on CUDA those of `cases.loss.GPU_SHAPES`, the axes swept from two points. A peer that is not installed or has no
kernel for the device is skipped and says what it needs.

Ours computes ranks, weights and advantages within what is timed; peers are given the advantages. Where prefixes are
shared ours takes a row for each distinct one (`rows=`), the peers a row for each token. No KL: ours leaves dead groups
out of the LM head, the peers do not. Every way's loss and gradients are compared with ours before it is timed.
extra_info has the memory that a call takes beyond inputs and gradients, for ours the distance of the live log-probs
from fp64 (`bench_log_prob.py` has the peers'), and the floor that `cases.loss.work_of` states for an H200.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from tawin_kernels import GRPOLoss, tawin_grpo_loss
from torch import Tensor

from bench.cases.loss import (
    CPU_SHAPES,
    GPU_SHAPES,
    Answer,
    LossInputs,
    answer_of,
    compare_answers,
    log_prob_error,
    make_inputs,
    work_of,
)
from bench.measure import extra_memory, machine_facts, synchronised_clock, time_warm
from bench.peers import GROUP_LOSSES, group_loss
from bench.skips import skipped_where_it_cannot_run

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SHAPES = GPU_SHAPES if ON_GPU else CPU_SHAPES
# One completion at a time is over a thousand launches each: beyond this, minutes a call.
MOST_TOKENS_ONE_BY_ONE = 16_384


@lru_cache(maxsize=1)  # tests run shape by shape, and the inputs of one fill gigabytes
def inputs_of(name: str) -> LossInputs:
    return make_inputs(SHAPES[name], DEVICE)


@lru_cache(maxsize=1)
def our_answer(name: str) -> tuple[Answer, Tensor]:
    """Loss and gradients, and the log-probs [B, G, L]."""
    inputs = inputs_of(name)
    result = our_loss(name, inputs)
    result.loss.backward()
    return answer_of(result.loss, inputs), result.log_probs


def our_loss(name: str, inputs: LossInputs) -> GRPOLoss:
    is_shared = SHAPES[name].is_shared
    return tawin_grpo_loss(
        inputs.hidden if is_shared else inputs.repeated_hidden,
        inputs.lm_head_weight,
        inputs.token_ids,
        inputs.mask,
        inputs.rewards,
        inputs.scores,
        rows=inputs.rows if is_shared else None,
        all_log_probs=False,  # as a trainer calls it
    )


def way_of(way: str, name: str, inputs: LossInputs) -> Callable[[], Tensor]:
    """Forward and backward, as a function that returns the loss and leaves gradients at the leaves."""
    advantages = inputs.advantages
    peer = None if way == "ours" else group_loss(way, DEVICE)

    def run() -> Tensor:
        inputs.clear_gradients()
        if peer is None:
            loss = our_loss(name, inputs).loss
        else:
            states, head = inputs.repeated_hidden, inputs.lm_head_weight
            loss = peer(states, head, inputs.token_ids, inputs.mask, advantages, None)
        loss.backward()
        return loss.detach()

    return run


@pytest.mark.benchmark(timer=synchronised_clock, disable_gc=True)
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("way", ["ours", *GROUP_LOSSES])
@pytest.mark.parametrize("name", SHAPES)
def test_group_loss(benchmark: BenchmarkFixture, name: str, way: str) -> None:
    shape, inputs = SHAPES[name], inputs_of(name)
    if way == "liger_fused 1" and shape.tokens > MOST_TOKENS_ONE_BY_ONE:
        pytest.skip("one completion at a time would take minutes at this many")
    try:
        with skipped_where_it_cannot_run(way):
            run = way_of(way, name, inputs)
            ours, our_log_probs = our_answer(name)
            agreement = compare_answers(ours, answer_of(run(), inputs), shape.dtype)
            memory = extra_memory(run) if ON_GPU else None
            benchmark.group = name
            median = time_warm(benchmark, run)
    finally:
        inputs.clear_gradients()

    work = work_of(shape, inputs, skips_dead=True)
    benchmark.extra_info.update(
        {
            "shape": str(shape),
            "way": way,
            "agreement": agreement,
            "extra_bytes": memory,
            "live_rows": work.backward_rows,
            "flops": work.flops,
            "bytes": work.bytes,
            "floor_milliseconds_of_an_h200": round(work.floor_seconds * 1e3, 4),
            **machine_facts(DEVICE),
        }
    )
    if way == "ours":
        benchmark.extra_info["log_prob_error_against_fp64"] = log_prob_error(our_log_probs, inputs, live_only=True)
    if median is not None and ON_GPU:  # the floor of a GPU says nothing about a CPU
        benchmark.extra_info["time_over_floor"] = round(median / work.floor_seconds, 2)
