"""`tawin train --dry-run`: the plan of a run on the terminal, and how long it will take. Nothing is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..catalog.catalog import Catalog
from ..config import Config
from ..data.dataset import Split
from .plan import Bytes, Plan, StagePlan, make_plan, memory
from .probe import LIMIT, Seconds, probe
from .work import work_of

ASSUMED_HITS = 0.5  # share of groups with a hit; what it will be, the data and the SFT start decide


@dataclass(frozen=True)
class Phase:
    """A part of a run and its predicted seconds: the least, the most, and in between."""

    name: str
    work: str
    least: float
    likely: float
    most: float


def predict(plan: Plan, seconds: Seconds, config: Config) -> list[Phase]:
    """What each part of the run will take, by the steps that were measured."""

    def fixed(name: str, work: str, value: float) -> Phase:
        return Phase(name, work, value, value, value)

    def evaluations(name: str, times: int, users: int) -> Phase:
        batches = -(-users // config.evaluation.batch_size)
        work = f"{times} of {users:,} users" if times > 1 else f"{users:,} users"
        return fixed(name, work, times * batches * seconds.evaluation_batch)

    least, most = seconds.grpo_step_without_hits or 0.0, seconds.grpo_step_with_hits or 0.0
    each = ((1 - share) * least + share * most for share in (0.0, ASSUMED_HITS, 1.0))
    return [
        fixed("SFT steps", f"{plan.sft.steps:,}", plan.sft.steps * (seconds.sft_step or 0.0)),
        evaluations("evaluations in SFT", plan.sft.evaluations, plan.valid_users),
        Phase("GRPO steps", f"{plan.grpo.steps:,}", *(plan.grpo.steps * value for value in each)),
        evaluations("evaluations in GRPO", plan.grpo.evaluations, plan.valid_users),
        evaluations("final evaluations", 2 if plan.grpo.steps else 1, plan.final_users),
    ]


def print_plan(
    accelerator: Accelerator,
    model: nn.Module,
    reference: nn.Module | None,
    tokenizer: PreTrainedTokenizerBase,
    catalog: Catalog,
    split: Split,
    config: Config,
) -> None:
    """Count, measure and print.

    model, reference: as `train_sft` and `train_grpo` take them, untrained. They are used up.
    """
    console = Console(markup=False)
    plan = make_plan(catalog, split, config)
    console.print(_work_table(plan))
    planned = memory(model, catalog, plan, config, bf16=accelerator.mixed_precision == "bf16")
    needed = max(sum(getattr(part, stage) for part in planned) for stage in ("sft", "grpo"))
    console.print(_memory_table(planned))
    if needed > (there := _memory_there(accelerator)):
        print(
            f"does not fit: about {_size(needed)} (predicted), {_size(there)} are there. Nothing was measured. "
            "Less is needed with smaller sft.batch-size, grpo.batch-size and evaluation.batch-size, with "
            "--policy.checkpoint-activations, and with --policy.lora-rank 8\ndry run: nothing was written"
        )
        return
    work = work_of(model, catalog, plan, config)
    print(f"measuring a micro-batch of each part, {LIMIT:.0f} seconds at most", flush=True)
    seconds = probe(accelerator, model, reference, tokenizer, catalog.to(accelerator.device), split, config, work)
    where = "on the GPU" if accelerator.device.type == "cuda" else "all of the process"
    print(f"peak of memory while measuring, {where}: {_size(seconds.peak_bytes)} (measured)")

    phases = predict(plan, seconds, config)
    table = Table(title=f"Time on this machine ({accelerator.device.type})")
    for name in ("", "work", "predicted", "from", "to", "by"):
        table.add_column(name, justify="left" if name in ("", "by") else "right")
    for phase in phases:
        times = map(_clock, (phase.likely, phase.least, phase.most))
        table.add_row(phase.name, phase.work, *times, _known_by(phase, seconds))
    sums = (sum(getattr(phase, name) for phase in phases) for name in ("likely", "least", "most"))
    table.add_row("together", "", *map(_clock, sums), "")
    console.print(table)
    print(
        "Predicted: by a micro-batch that was measured, or by FLOPs where one would have taken too long. "
        f"From: no group has a hit; to: all have; predicted: {ASSUMED_HITS:.0%} have. Not in it: loading, building the "
        "catalogue, checkpoints, the report. SFT may stop early, within its patience."
    )
    if advice := evaluation_advice(phases, plan, config):
        print(advice)
    print("dry run: nothing was written")


def evaluation_advice(phases: list[Phase], plan: Plan, config: Config) -> str:
    """What to change where evaluations are more than half of a run; else ""."""
    total = sum(phase.likely for phase in phases)
    share = sum(phase.likely for phase in phases if "evaluation" in phase.name) / total if total else 0.0
    if share <= 0.5:
        return ""
    ways = [
        f"--evaluation.valid-users 500 (now {plan.valid_users:,})" if plan.valid_users > 500 else "",
        f"--evaluation.test-users 1000 (now {plan.final_users // 2:,})" if plan.final_users > 2000 else "",
        f"--evaluation.beam-width 10 (now {config.evaluation.beam_width})" if config.evaluation.beam_width > 10 else "",
        "--sft.evaluate-every or --grpo.evaluate-every, higher"
        if plan.sft.evaluations + plan.grpo.evaluations > 3
        else "",
    ]
    named = "; ".join(way for way in ways if way) or "fewer users, or a shorter split.max-history"
    return f"Evaluation is {share:.0%} of the time. To change: {named}"


def _known_by(phase: Phase, seconds: Seconds) -> str:
    """Whether a part's time rests on what was measured."""
    names = (
        {"evaluation"} if "evaluation" in phase.name else {name for name in _KINDS if phase.name.startswith(name[:4])}
    )
    return "FLOPs" if names & set(seconds.predicted) else "measured micro-batch"


_KINDS = ("SFT", "GRPO", "GRPO with hits")


def _memory_there(accelerator: Accelerator) -> float:
    """Bytes of the GPU, or of this machine."""
    if accelerator.device.type == "cuda":
        return float(torch.cuda.mem_get_info(accelerator.device)[1])
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _memory_table(planned: list[Bytes]) -> Table:
    table = Table(title="Memory of one process, predicted")
    for name in ("", "SFT", "GRPO", "known by"):
        table.add_column(name, justify="right" if name in ("SFT", "GRPO") else "left")
    for part in planned:
        table.add_row(part.what, _size(part.sft), _size(part.grpo), part.known)
    sums = (sum(getattr(part, stage) for part in planned) for stage in ("sft", "grpo"))
    table.add_row("together", *map(_size, sums), "estimate")
    return table


def _work_table(plan: Plan) -> Table:
    table = Table(title="Work")
    for name in ("", "SFT", "GRPO"):
        table.add_column(name, justify="right" if name else "left")
    stages = (plan.sft, plan.grpo)

    def row(name: str, *values: str) -> None:
        table.add_row(name, *values)

    row("steps", *(f"{stage.steps:,}" for stage in stages))
    row("epochs", *(f"{stage.epochs:.1f}" for stage in stages))
    row("a step: prompts", "", f"{plan.grpo.prompts:,}")
    row("a step: tokens of prompts", "", f"{plan.grpo.prompt_tokens:,.0f}")
    row("a step: sequences, completions", *(f"{stage.sequences:,}" for stage in stages))
    row("a step: their tokens", *(f"{stage.tokens:,.0f}" for stage in stages))
    row("in all: tokens", *(_tokens(stage) for stage in stages))
    row("evaluations while training", *(f"{stage.evaluations:,}" for stage in stages))
    row("tokens known by", *(stage.known for stage in stages))
    return table


def _tokens(stage: StagePlan) -> str:
    return f"{stage.steps * (stage.tokens + stage.prompt_tokens):,.0f}"


def _size(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
