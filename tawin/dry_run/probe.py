"""Real steps of a run to come, timed: a micro-batch of SFT, of GRPO and of an evaluation, on this machine.

Models are changed by them and thrown away after. A checkpoint is never written.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..catalog.catalog import Catalog
from ..config import Config
from ..data.dataset import Split
from ..evaluate.ranking import decided, recommend, sampled
from ..rl.step import grpo_step
from ..run.folder import RunFolder
from ..train.engine import Stage
from ..train.grpo import reference_log_probs
from ..train.sft import sft_step, sft_windows
from .work import Work, flops_a_second

LIMIT = 60.0  # seconds that all measuring takes, about: no call is begun that is not predicted to end within it


@dataclass(frozen=True)
class Seconds:
    """What one step and one batch take; None for a stage that the run does not have."""

    sft_step: float | None
    grpo_step_without_hits: float | None
    """A step whose groups have no hit at all: a rollout and next to nothing else, where beta is 0."""
    grpo_step_with_hits: float | None
    """A step whose groups all have one."""
    evaluation_batch: float
    peak_bytes: int
    """The most memory in use: of the GPU where there is one, else of this process, all it had loaded included."""
    predicted: tuple[str, ...] = ()
    """Names of the above that were not measured, but follow from FLOPs and the speed of what was."""


@dataclass
class _Clock:
    """Measures calls as long as there is time, and predicts the others."""

    deadline: float
    speed: float
    """FLOPs a second, first of plain products, then of the calls that were measured."""
    calls_left: int
    predicted: list[str]

    def seconds(self, name: str, flops: float, size: int, call: Callable[[int], object]) -> float:
        """Seconds of `call(size)`, of `flops` each; measured on fewer where so many would take too long."""
        expected, share = flops / self.speed, (self.deadline - time.perf_counter()) / self.calls_left
        self.calls_left -= 1
        if expected > share:
            print(f"{name}: one alone would take about {expected:,.0f} s: predicted, not measured", flush=True)
            self.predicted.append(name)
            return size * expected
        print(f"{name}: measuring, {share:,.0f} s at most", flush=True)
        one = _timed(call, 1)  # with what does not grow with the size: the optimizer's step, the first call's start
        fit = min(size, int(1 + (share - 2 * one) / (2 * expected)))
        if fit < min(2, size):
            self.predicted.append(name)
            return one + (size - 1) * expected
        taken = _timed(call, fit)
        each = max(expected, (taken - one) / max(1, fit - 1))
        self.speed = min(self.speed, fit * flops / taken)
        return taken + (size - fit) * each


def probe(
    accelerator: Accelerator,
    model: nn.Module,
    reference: nn.Module | None,
    tokenizer: PreTrainedTokenizerBase,
    catalog: Catalog,
    split: Split,
    config: Config,
    work: Work,
    limit: float = LIMIT,
) -> Seconds:
    """Time a micro-batch of each kind of work of a run of `config`, from its untrained model, within `limit` seconds.

    model, reference: as `train_sft` and `train_grpo` take them. The model is trained a little.
    """
    steps = config.grpo.steps_on(len(split.rl))
    config = decided(replace(config, grpo=replace(config.grpo, steps=steps)), split)
    model.to(accelerator.device)
    speed = flops_a_second(model, accelerator.device, bf16=accelerator.mixed_precision == "bf16")
    calls = 1 + (config.sft.epochs > 0) + 2 * (steps > 0)
    clock = _Clock(time.perf_counter() + limit, speed, calls, [])
    valid = split.valid

    def evaluate(size: int) -> None:
        users = sampled(valid, size, config.seed)
        recommend(model, catalog, users.histories, config.evaluation, seen=users.seen)

    batch = clock.seconds("evaluation", work.evaluated_user, min(config.evaluation.batch_size, len(valid)), evaluate)
    with tempfile.TemporaryDirectory() as folder:  # where a stage would look for a checkpoint: there is none
        run = RunFolder.create(Path(folder) / "probe", config)
        sft = with_hits = without_hits = None
        if config.sft.epochs > 0:
            sft = _sft_seconds(clock, work, accelerator, model, tokenizer, catalog, split, config, run)
        if steps > 0:
            without_hits, with_hits = _grpo_seconds(
                clock, work, accelerator, model, reference, tokenizer, catalog, split, config, run
            )
    return Seconds(sft, without_hits, with_hits, batch, _peak_bytes(), tuple(clock.predicted))


def _sft_seconds(
    clock: _Clock,
    work: Work,
    accelerator: Accelerator,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    catalog: Catalog,
    split: Split,
    config: Config,
    run: RunFolder,
) -> float:
    windows, first_targets = sft_windows(catalog, split, config)
    stage = Stage.start("sft", accelerator, model, tokenizer, config.sft, 100, run, config.guards)
    drawn = np.random.default_rng((config.seed, 0, 0)).permutation(len(windows))
    size = min(config.sft.batch_size, len(windows))

    def step(rows: int) -> None:
        sft_step(stage, catalog, windows, first_targets, drawn[:rows], config)

    seconds = clock.seconds("SFT", work.sft_sequence, size, step)
    accelerator.free_memory()
    return seconds * config.sft.gradient_accumulation


def _grpo_seconds(
    clock: _Clock,
    work: Work,
    accelerator: Accelerator,
    model: nn.Module,
    reference: nn.Module | None,
    tokenizer: PreTrainedTokenizerBase,
    catalog: Catalog,
    split: Split,
    config: Config,
    run: RunFolder,
) -> tuple[float, float]:
    """Seconds of a step without any hit and of one with hits in all groups.

    An untrained model hits less than one behind SFT does, and groups without a hit cost least. So steps are measured
    as they come and with every target put into its group; the time is taken to be linear in the share of live groups.
    """
    stage = Stage.start("grpo", accelerator, model, tokenizer, config.grpo, 100, run, config.guards)
    frozen = reference_log_probs(stage, reference) if config.grpo.beta > 0 else None
    size, points = min(config.grpo.batch_size, len(split.rl)), []
    kinds = (("GRPO", work.grpo_prompt_without_hit), ("GRPO with hits", work.grpo_prompt_with_hit))
    for (name, flops), ensured in zip(kinds, (config.grpo.ensure_positive, True), strict=True):
        live: list[float] = [float(ensured)]  # of a step that is predicted

        def step(prompts: int, ensured: bool = ensured, live: list[float] = live) -> None:
            grpo = replace(config.grpo, ensure_positive=ensured, batch_size=prompts, gradient_accumulation=1)
            live.append(grpo_step(stage, catalog, split.rl, replace(config, grpo=grpo), frozen)["live_share"])

        seconds = clock.seconds(name, flops, size, step)
        points.append((live[-1], seconds * config.grpo.gradient_accumulation))
    accelerator.free_memory()
    return _ends(*points)


def _ends(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Of two points (share, seconds) the line's seconds at shares 0 and 1; their mean where they are too near."""
    (low, few), (high, many) = first, second
    if high - low < 0.1:
        return (few + many) / 2, (few + many) / 2
    slope = max(0.0, (many - few) / (high - low))
    return max(0.0, few - slope * low), many + slope * (1 - high)


def _timed(call: Callable[[int], object], size: int) -> float:
    _wait()
    started = time.perf_counter()
    call(size)
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
