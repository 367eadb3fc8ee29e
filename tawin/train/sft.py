"""Supervised fine-tuning: the next item's tokens by cross-entropy, until valid says that it is enough."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..catalog.catalog import Catalog
from ..config import Config, SFTConfig
from ..data.dataset import Split, target_windows, training_windows
from ..data.ragged import Ragged
from ..evaluate.ranking import decided
from ..model.cross_entropy import WindowBatch, sampled_negatives, window_loss
from ..run.folder import RunFolder
from .checkpoint import Progress
from .engine import Stage
from .findings import look_into_windows
from .loop import Loop


def train_sft(
    accelerator: Accelerator,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    catalog: Catalog,
    split: Split,
    config: Config,
    run: RunFolder,
) -> Progress:
    """Next-item cross-entropy, one sequence a user with a loss on every item that has a history; one sequence an item
    where prompts have text between or behind their items.

    Stops early where valid recall has not risen for `sft.patience` evaluations. The best model is in checkpoints/sft.
    """
    config = decided(config, split)
    windows, first_targets = sft_windows(catalog, split, config)
    sft = config.sft
    per_step = sft.batch_size * sft.gradient_accumulation
    steps_an_epoch, total = sft_steps(len(windows), sft)
    stage = Stage.start("sft", accelerator, model, tokenizer, sft, total, run, config.guards, config.checkpoints)
    batches = batches_from(stage.progress.step, windows.lengths, per_step, config.seed)
    with Loop(
        stage,
        catalog,
        split.valid,
        config,
        total,
        sft.evaluate_every * steps_an_epoch,
        shown=("loss",),
        evaluates_start=False,
        patience=sft.patience,
        steps_an_epoch=steps_an_epoch,
    ) as loop:
        while loop.goes_on():
            epoch, rows = next(batches)
            figures = sft_step(stage, catalog, windows, first_targets, rows, config)
            loop.took({**figures, "epoch": epoch})
    return stage.progress


def sft_windows(catalog: Catalog, split: Split, config: Config) -> tuple[Ragged, np.ndarray]:
    """The sequences of an epoch, and the index of the first target in each."""
    cut = target_windows if catalog.one_target else training_windows
    return cut(split.sft, config.split.max_history)


def sft_steps(windows: int, sft: SFTConfig) -> tuple[int, int]:
    """Steps of an epoch, and in all where it is not stopped early."""
    steps_an_epoch = -(-windows // (sft.batch_size * sft.gradient_accumulation))
    return steps_an_epoch, min(steps_an_epoch * sft.epochs, sft.max_steps or steps_an_epoch * sft.epochs)


def sft_step(
    stage: Stage, catalog: Catalog, windows: Ragged, first_targets: np.ndarray, rows: np.ndarray, config: Config
) -> dict[str, float]:
    """One step on some of the windows, its update included; gives its figures."""
    stage.model.train()
    rate = stage.scheduler.get_last_lr()[0]
    stage.seed(config.seed)
    loss = _backward(stage, catalog, windows, first_targets, rows, config)
    own = rows[stage.processes.share(len(rows))]
    look = partial(
        look_into_windows, catalog=catalog, windows=windows, first_targets=first_targets, rows=own, config=config
    )
    norm = stage.update(figures={"loss": loss}, look=look)
    return {"loss": loss, "learning_rate": rate, "grad_norm": norm}


def _backward(
    stage: Stage,
    catalog: Catalog,
    windows: Ragged,
    first_targets: np.ndarray,
    rows: np.ndarray,
    config: Config,
) -> float:
    """Forward and backward of one step over `rows`, sft.batch_size sequences a forward; the loss, nats per token, each
    token by the weight of its interaction where interactions have weights."""
    batches, size = [], config.sft.batch_size
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        own = chosen[stage.processes.share(len(chosen))]
        kept = own if len(own) else chosen[:1]  # a process that has no row runs one for company
        part = windows.take(kept), first_targets[kept]
        batches.append(WindowBatch.of(catalog, *part, stage.processes.device, counts=len(own) > 0))
    (total,) = stage.processes.sums(sum(batch.total.item() for batch in batches))
    weighed = (total, config.attention, sampled_negatives(catalog, config))
    losses = [
        stage.backward(window_loss, batch, *weighed, is_last=index == len(batches) - 1)[0]
        for index, batch in enumerate(batches)
    ]
    (loss,) = stage.processes.sums(torch.stack(losses).sum())
    return loss


def batches_from(step: int, lengths: np.ndarray, size: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """The batches of all epochs from step number `step` on: the epoch, from 1, and the rows."""
    epoch, done = divmod(step, -(-len(lengths) // size))
    while True:
        for rows in islice(epoch_batches(lengths, size, np.random.default_rng((seed, 0, epoch))), done, None):
            yield epoch + 1, rows
        epoch, done = epoch + 1, 0


def epoch_batches(lengths: np.ndarray, size: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Every row once, in batches of sequences of like length (little padding), in random order."""
    order = random.permutation(len(lengths))
    pool = 16 * size
    batches = []
    for start in range(0, len(order), pool):
        rows = order[start : start + pool]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[i : i + size] for i in range(0, len(rows), size)]
    for index in random.permutation(len(batches)):
        yield batches[index]
