"""Real steps of a run to come, timed: a few of SFT and GRPO and one batch of an evaluation, on this machine.

Models are changed by them and thrown away after. A checkpoint is never written.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

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
from ..train.sft import epoch_batches, sft_step, sft_windows

WARM_UP = 1
MEASURED = 2


@dataclass(frozen=True)
class Seconds:
    """What was measured; None for a stage that the run does not have."""

    sft_step: float | None
    grpo_step_without_hits: float | None
    """A step whose groups have no hit at all: a rollout and next to nothing else, where beta is 0."""
    grpo_step_with_hits: float | None
    """A step whose groups all have one."""
    evaluation_batch: float
    peak_bytes: int
    """The most memory in use: of the GPU where there is one, else of this process, all it had loaded included."""

    @property
    def steps(self) -> int:
        """Steps that were measured."""
        return MEASURED * ((self.sft_step is not None) + 2 * (self.grpo_step_with_hits is not None))


def probe(
    accelerator: Accelerator,
    model: nn.Module,
    reference: nn.Module | None,
    tokenizer: PreTrainedTokenizerBase,
    catalog: Catalog,
    split: Split,
    config: Config,
) -> Seconds:
    """Time the steps of a run of `config` from its untrained model.

    model, reference: as `train_sft` and `train_grpo` take them. The model is trained a little.
    """
    steps = config.grpo.steps_on(len(split.rl))
    config = replace(config, grpo=replace(config.grpo, steps=steps))
    with tempfile.TemporaryDirectory() as folder:  # where a stage would look for a checkpoint: there is none
        run = RunFolder.create(Path(folder) / "probe", config)
        sft = with_hits = without_hits = None
        if config.sft.epochs > 0:
            sft = _sft_seconds(accelerator, model, tokenizer, catalog, split, config, run)
        if steps > 0:
            without_hits, with_hits = _grpo_seconds(
                accelerator, model, reference, tokenizer, catalog, split, config, run
            )
        model.to(accelerator.device)
        valid = sampled(split.valid, config.evaluation.batch_size, config.seed)
        evaluation = decided(config, split).evaluation
        batch = 0.0
        if valid:
            batch = _seconds(lambda: recommend(model, catalog, valid.histories, evaluation, seen=valid.seen), 1)
    return Seconds(sft, without_hits, with_hits, batch, _peak_bytes())


def _sft_seconds(
    accelerator: Accelerator,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    catalog: Catalog,
    split: Split,
    config: Config,
    run: RunFolder,
) -> float:
    windows, first_targets = sft_windows(catalog, split, config)
    size = config.sft.batch_size * config.sft.gradient_accumulation
    stage = Stage.start("sft", accelerator, model, tokenizer, config.sft, 100, run, config.guards)
    batches = list(epoch_batches(windows.lengths, size, np.random.default_rng((config.seed, 0, 0))))
    rows = iter(batches * (WARM_UP + MEASURED))
    seconds = _seconds(lambda: sft_step(stage, catalog, windows, first_targets, next(rows), config), MEASURED)
    accelerator.free_memory()
    return seconds


def _grpo_seconds(
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
    points = []
    for ensured in (config.grpo.ensure_positive, True):
        chosen = replace(config, grpo=replace(config.grpo, ensure_positive=ensured))
        live: list[float] = []

        def step(chosen: Config = chosen, live: list[float] = live) -> None:
            live.append(grpo_step(stage, catalog, split.rl, chosen, frozen)["live_share"])

        seconds = _seconds(step, MEASURED)
        points.append((fmean(live[-MEASURED:]), seconds))
    accelerator.free_memory()
    return _ends(*points)


def _ends(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Of two points (share, seconds) the line's seconds at shares 0 and 1; their mean where they are too near."""
    (low, few), (high, many) = first, second
    if high - low < 0.1:
        return (few + many) / 2, (few + many) / 2
    slope = max(0.0, (many - few) / (high - low))
    return max(0.0, few - slope * low), many + slope * (1 - high)


def _seconds(work: Callable[[], object], times: int) -> float:
    """Mean seconds of one call, the first one aside."""
    for _ in range(WARM_UP):
        work()
    _wait()
    started = time.perf_counter()
    for _ in range(times):
        work()
    _wait()
    return (time.perf_counter() - started) / times


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
