"""A whole GRPO step of a recommender, rollout to optimizer: ours against the ways that users have today.

Run: python -m bench.bench_training_step [--case NAME ...] [--way NAME ...] [--rounds N] [--threads N]
         [--device cpu|cuda] [--out [FOLDER]] [--trace FOLDER [--trace-peers]] [--no-memory]
 or: pytest bench/bench_training_step.py [-k "instruction and ours"] [--benchmark-json FILE]

The ways, same weights, prompts, targets, advantages, loss and optimizer settings (`step.cases`, `step.ways`):
* ours: `tawin.rl.step.grpo_backward` and `Stage.update`;
* shared_prefix: rollout by `generate`, forwards with each prompt once and TRL 1.16's chunked log-prob head;
  shared_prefix_plain: the same with a full log-softmax, where TRL is not installed or slower;
* rere: rollout by `generate`, forwards with the prompt repeated before each completion and full logits.
All but ours run all groups. Before a way is timed its items, scores, rewards, loss and gradients are compared with
ours in fp32.

The command takes the ways in turns, so that whatever else the machine does hits all: a round is a step of each peer and
three of ours, as ours is short. Before each step the weights are put back. The time of a step is that of whole steps;
phases are timed in the same steps on the CPU, in further ones on CUDA, where a phase's border waits for the device.
In the peers' rollout all up to the end of `generate`'s first forward is prefill, the rest decode. rere's logits are
part of its forward, as they are in the model's own; the other ways' LM head is part of the loss. Of the environment,
OMP_* and MALLOC_* matter as `foundation` says: with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 glibc keeps
what is freed, which spares the peers' large tensors their page faults and is the fairer setting to time them in.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.profiler import ProfilerActivity, profile

from bench.foundation import OURS_PER_ROUND
from bench.measure import (
    MOST_ROUNDS,
    RESULTS,
    SECONDS_A_BENCHMARK,
    extra_memory,
    machine_facts,
    seconds_of,
    synchronised_clock,
    time_stamp,
    write_device_results,
)
from bench.peers import MissingPeer
from bench.skips import skipped_where_it_cannot_run
from bench.step.cases import StepCase, StepSetting, make_case, settings_for
from bench.step.memory import NotMeasured, memory_in_own_process
from bench.step.report import CaseFigures, WayFigures, as_json, flops_of, needed_of, step_shape, table
from bench.step.ways import PEER_WAYS, WAYS, StepWay, compare_steps, counted_tokens, rolled_out, way_of
from tawin.run.phases import phase_seconds
from tools.gpu import run as gpu

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


def measure(setting: StepSetting, device: torch.device, rounds: int, ways: Sequence[str] = WAYS) -> CaseFigures:
    """Compare, then time in turns; without memory. ways: those wanted, "ours" among them."""
    found = agreements(setting, device, ways)
    let_go()
    case = make_case(setting, device)
    ours = rolled_out(case)
    figures = {
        name: WayFigures(name, setting.at_once(name), missing=missing, agreement=agreement)
        for name, (agreement, missing) in found.items()
    }
    running = {name: way_of(name, case) for name, one in figures.items() if one.missing is None}
    for name, way in running.items():
        case.restore()
        with counted_tokens(case) as tokens:
            way.step()  # also the warm-up
        figures[name].tokens = tokens
    for _ in range(rounds):
        for name, way in running.items():
            for _ in range(OURS_PER_ROUND if name == "ours" else 1):
                time_step(case, way, figures[name])
    shape = step_shape(case, ours.token_ids, float(ours.live.float().mean()))
    for name in running:
        figures[name].flops = flops_of(name, case, shape)
    return CaseFigures(
        setting.name,
        f"{setting} ({case.catalogue})",
        shape.live_share,
        shape,
        needed_of(case, shape),
        list(figures.values()),
    )


def agreements(
    setting: StepSetting, device: torch.device, ways: Sequence[str]
) -> dict[str, tuple[str | None, str | None]]:
    """Of each way: how well it agrees with ours in fp32, or why it cannot run. AssertionError where they differ."""
    case = make_case(setting, device, exact=True)
    ours = way_of("ours", case).answer()
    found: dict[str, tuple[str | None, str | None]] = {"ours": (None, None)}
    for name in ways:
        if name != "ours":
            try:
                found[name] = (compare_steps(ours, way_of(name, case).answer(), case.catalog.trie), None)
            except MissingPeer as missing:
                found[name] = (None, str(missing))
    return found


def let_go() -> None:
    """Give back what cases before held: on a GPU two do not fit, and the rings of a Stage wait for the collector."""
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()


def time_step(case: StepCase, way: StepWay, figures: WayFigures) -> None:
    """One more step, and its phases."""
    case.restore()
    with phase_seconds() as phases:
        seconds = seconds_of(way.step)
    if case.device.type == "cuda":
        case.restore()
        # Without the waits at the phases' borders.
        seconds = seconds_of(way.step)
    figures.seconds.append(seconds)
    figures.phases.append(dict(phases))


def write_trace(case: StepCase, way: StepWay, folder: Path) -> Path:
    """A Chrome trace of one step after a warm-up; an existing file is never overwritten."""
    case.restore()
    way.step()
    case.restore()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if case.device.type == "cuda" else [])
    with profile(activities=activities) as profiler:
        way.step()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"trace-{case.setting.name}-{way.name}-{time_stamp()}.json.gz"
    path.touch(exist_ok=False)
    profiler.export_chrome_trace(str(path))
    return path


@lru_cache(maxsize=1)  # tests run case by case, and those of a GPU fill gigabytes
def case_of(name: str) -> StepCase:
    let_go()
    return make_case(settings_for(DEVICE)[name], DEVICE)


@lru_cache(maxsize=2)
def agreement_of(name: str, way: str) -> str | None:
    agreement, missing = agreements(settings_for(DEVICE)[name], DEVICE, [way])[way]
    if missing is not None:
        raise MissingPeer(missing)
    return agreement


@pytest.mark.benchmark(timer=synchronised_clock, disable_gc=True)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", settings_for(DEVICE))
def test_training_step(benchmark: BenchmarkFixture, name: str, way: str) -> None:
    with skipped_where_it_cannot_run(way):
        agreement = agreement_of(name, way)
        case = case_of(name)
        chosen = way_of(way, case)
        case.restore()
        with counted_tokens(case) as tokens:
            chosen.step()
        figures = WayFigures(way, case.setting.at_once(way))
        time_step(case, chosen, figures)
        case.restore()
        memory = extra_memory(chosen.step) if ON_GPU else None
        benchmark.group = name
        rounds = min(MOST_ROUNDS, max(1, int(SECONDS_A_BENCHMARK / figures.seconds[0])))
        benchmark.pedantic(chosen.step, setup=case.restore, rounds=rounds)
    benchmark.extra_info.update(
        {
            "case": f"{case.setting} ({case.catalogue})",
            "way": way,
            "agreement": agreement,
            "phase_seconds": figures.phases[0],
            "tokens": tokens,
            "prompts_at_once": figures.prompts_at_once,
            "extra_bytes": memory,
            **machine_facts(DEVICE),
        }
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_training_step", description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", metavar="NAME", help="one of the device's cases; default: all")
    parser.add_argument("--way", action="append", choices=PEER_WAYS, help="a peer; default: all. Ours always runs")
    parser.add_argument("--rounds", type=int, default=3, help="steps of each peer; ours takes three times as many")
    parser.add_argument("--threads", type=int, default=None, help="torch threads; default: torch's own choice")
    parser.add_argument("--device", type=torch.device, default=DEVICE, help="cpu or cuda")
    parser.add_argument("--out", type=Path, nargs="?", const=RESULTS, help="write JSON there; alone: bench/results")
    parser.add_argument("--trace", type=Path, metavar="FOLDER", help="write a profiler's trace of a step of ours there")
    parser.add_argument("--trace-peers", action="store_true", help="of the peers' steps too")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak of memory, a process a way")
    options = parser.parse_args(arguments)
    settings = settings_for(options.device)
    names = options.case or list(settings)
    if unknown := [name for name in names if name not in settings]:
        parser.error(f"--case: expected some of {', '.join(settings)}, got {', '.join(unknown)}")
    if options.rounds < 1 or (options.threads is not None and options.threads < 1):
        parser.error("--rounds and --threads: expected 1 or more")
    if options.trace_peers and options.trace is None:
        parser.error("--trace-peers: expected --trace FOLDER with it")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    machine = machine_facts(options.device)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    peak = gpu.ceilings(4.0)["bf16_flops_per_second_median"] if options.device.type == "cuda" else None
    measured = []
    for name in names:
        print(f"measuring: {name}", flush=True)
        figures = measure(settings[name], options.device, options.rounds, ("ours", *(options.way or PEER_WAYS)))
        if not options.no_memory:
            add_memory(figures, options.device)
        print(table(figures, peak), flush=True)
        measured.append(figures)
        if options.trace is not None:
            trace(settings[name], options.device, figures, options.trace, options.trace_peers)
    if options.out is not None:
        print(f"written: {write_device_results(as_json(measured, machine, peak), options.out, 'training-step')}")


def add_memory(figures: CaseFigures, device: torch.device) -> None:
    """The peak of each way that ran, in a process of its own."""
    let_go()
    for way in figures.measured:
        try:
            way.memory = memory_in_own_process(figures.name, way.name, device)
        except NotMeasured as error:
            print(f"memory of {way.name} not measured: {error}", flush=True)


def trace(setting: StepSetting, device: torch.device, figures: CaseFigures, folder: Path, with_peers: bool) -> None:
    case = make_case(setting, device)
    for way in figures.measured:
        if way.name == "ours" or with_peers:
            print(f"written: {write_trace(case, way_of(way.name, case), folder)}")


if __name__ == "__main__":
    main()
